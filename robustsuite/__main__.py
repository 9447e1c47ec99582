"""`python -m robustsuite` is `robustsuite`."""

from robustsuite.cli.main import main

if __name__ == "__main__":
    main()
