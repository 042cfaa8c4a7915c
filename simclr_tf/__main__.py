"""`python -m simclr_tf COMMAND` is `simclr-tf COMMAND`; nothing else lives here."""

import sys

from simclr_tf import cli

if __name__ == "__main__":
    sys.exit(cli.main())
