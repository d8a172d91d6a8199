"""`python -m smallnets VERB ...` is `smallnets VERB ...`."""

from smallnets.cli import console

if __name__ == "__main__":
    console()
