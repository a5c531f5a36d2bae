"""``python -m effcompress``: the same as the console script."""

from effcompress.cli import main

if __name__ == "__main__":
    main()
