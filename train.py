"""Train a diffusion model: python train.py --config=configs/digits.py --workdir=runs/digits."""

from jaxdiff.cli import train

if __name__ == "__main__":
    train.main()
