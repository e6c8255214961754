"""Sample from a trained model: python sample.py --workdir=runs/digits --n=64 --out=digits.png."""

from jaxdiff.cli import sample

if __name__ == "__main__":
    sample.main()
