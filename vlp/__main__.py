"""``python -m vlp`` is ``vlp``."""

from vlp.cli import main

if __name__ == "__main__":
    main()
