"""Train a diffusion model: python train.py --config=configs/digits.py --workdir=runs/digits."""

from jaxdiff import cli

if __name__ == "__main__":
    cli.train.main()
