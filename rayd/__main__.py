"""Entry point of `python -m rayd`."""

from rayd.cli import main

if __name__ == "__main__":
    main()
