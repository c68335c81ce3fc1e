"""`python -m rayd`: the command line."""

from rayd.cli import main

if __name__ == "__main__":
    main()
