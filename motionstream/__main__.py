"""`python -m motionstream`: see `motionstream.cli`."""

import sys

from motionstream.cli import main

sys.exit(main())
