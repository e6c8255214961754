"""Sample from a trained model: python sample.py --workdir=runs/digits --n=64 --out=digits.png."""

from jaxdiff import cli

if __name__ == "__main__":
    cli.sample.main()
