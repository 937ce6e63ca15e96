"""Exit with 0 if a web server answers with 200, for health checks: the image has no curl."""

import sys
import urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=5) as response:
    sys.exit(response.status != 200)
