#!/bin/sh
# Makes the virtual environment that `make demo` and `make test` use.
# Needs Python 3.10 or newer with venv and pip; on Debian and Ubuntu those are
# separate packages, and as root they are installed when they are missing.
set -eu
venv=${1:-.venv}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "spotd: Python 3.10 or newer is needed; set PYTHON=/path/to/python3" >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv python3-pip
    else
        echo "spotd: $python has no venv; install it: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q --upgrade 'pip>=25.1'
# First torch alone, by its pin, so that nothing else chooses a build of it.
"$venv/bin/python" -m pip install -q 'torch==2.13.0'
"$venv/bin/python" -m pip install -q -e '.[demo]' --group test --group lint 'torch==2.13.0'
