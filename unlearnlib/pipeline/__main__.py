"""``python -m unlearnlib.pipeline PROFILE [STAGE ...]``, see `profiles`."""

import sys

from unlearnlib.pipeline.profiles import main

sys.exit(main(sys.argv[1:]))
