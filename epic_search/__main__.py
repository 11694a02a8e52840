"""`python -m epic_search`: the command, for launchers that start Python modules, such as torchrun."""

from epic_search.cli.main import main

if __name__ == "__main__":
    main()
