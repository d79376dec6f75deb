# Sourced by the commands beside it, never run: makes and refreshes the environment in .venv.
#
#   onereel_root SCRIPT      the repository of a command, through symlinks
#   ensure_venv ROOT [EXTRA] .venv holds onereel (and its extra) as pyproject.toml now says
#
# A stamp file per extra says what was installed, so a second run costs only its comparison. The
# stamp is written last: after an interrupted install it is missing, and the next run installs
# again. All talk goes to stderr.

say() { printf 'onereel: %s\n' "$*" >&2; }

fail() { # fail MESSAGE HINT
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 4
}

onereel_root() {
  dirname -- "$(dirname -- "$(readlink -f -- "$1")")"
}

# What an environment must have been made from: the place (scripts inside it hold absolute paths)
# and the two files that say what goes in.
wanted_stamp() {
  printf '%s\n' "$1"
  cksum <"$1/pyproject.toml"
  cksum <"$1/constraints.txt"
}

is_ready() { # is_ready ROOT EXTRA
  local found stamp
  [ -x "$1/.venv/bin/onereel" ] || return 1
  for stamp in "$1/.venv/.onereel-$2" "$1/.venv/.onereel-dev"; do
    if [ -f "$stamp" ]; then
      found=$(cat "$stamp")
      [ "$found" = "$(wanted_stamp "$1")" ] && return 0
    fi
  done
  return 1
}

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$name"
      return 0
    fi
  done
  return 1
}

make_venv() { # make_venv ROOT: a working .venv with pip; what is there stays when it works
  local python
  if "$1/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
    return 0
  fi
  python=$(find_python) || fail "python3: expected 3.11 or newer, got $(python3 --version 2>&1 || true)" \
    "install Python 3.11+ so that 'python3' or 'python3.11' is on the PATH"
  say "first use: making $1/.venv with $("$python" --version 2>&1)"
  "$python" -m venv --clear "$1/.venv" >&2 || fail "$python cannot make a virtual environment" \
    "install its venv module (Debian, Ubuntu: apt install python3-venv)"
}

install() { # install ROOT EXTRA
  local target="$1" stamp="$1/.venv/.onereel-$2"
  make_venv "$1"
  rm -f "$1"/.venv/.onereel-*
  [ "$2" = base ] || target="$1[$2]"
  say "installing onereel into $1/.venv (some minutes the first time, torch is large)"
  "$1/.venv/bin/python" -m pip install --disable-pip-version-check --no-input \
    --constraint "$1/constraints.txt" --editable "$target" >&2 ||
    fail "the installation failed" "see pip's message above; the next run tries again"
  wanted_stamp "$1" >"$stamp.part"
  mv "$stamp.part" "$stamp"
  say "ready"
}

ensure_venv() {
  local root="$1" extra="${2:-base}"
  is_ready "$root" "$extra" && return 0
  # Two first uses at once: the second waits, then finds the work done. (No flock on macOS.)
  exec 9<"$root/constraints.txt"
  if command -v flock >/dev/null 2>&1; then flock 9; fi
  is_ready "$root" "$extra" || install "$root" "$extra"
  exec 9<&-
}
