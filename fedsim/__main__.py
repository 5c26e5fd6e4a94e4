"""`python -m fedsim` is the same as the `fedsim` command."""

from fedsim.cli.app import main

if __name__ == "__main__":
    main()
