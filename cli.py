"""The command line from a checkout: `python cli.py ...` is `robustsuite ...`."""

from robustsuite.cli.main import main

if __name__ == "__main__":
    main()
