"""Progress bars: in notebooks, on terminals, and nowhere else."""

import sys
from typing import Any

from tqdm.auto import tqdm as _tqdm  # a widget in a notebook, text elsewhere


class tqdm(_tqdm):  # noqa: N801
    """tqdm, except that `disable=None` also shows the bar in notebooks, whose output is no terminal."""

    leave: bool | None

    def __init__(self, *args: Any, **options: Any) -> None:
        if options.get("disable", False) is None and in_notebook():
            options["disable"] = False
        super().__init__(*args, **options)
        if self.leave is None and not self.disable and in_notebook():
            self.leave = self.pos == 0  # as on terminals; the widget itself would always disappear when it is full


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
