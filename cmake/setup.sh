# Sourced by ./run and ./check: installs what is missing, or says what to install.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/trireme"

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
fail() { printf 'trireme: error: %s\n' "$*" >&2; exit 3; }

build_packages="g++ cmake ninja-build ccache pkg-config python3 python3-venv libopenmpi-dev openmpi-bin libhdf5-dev
  libyaml-cpp-dev libeigen3-dev libcli11-dev nlohmann-json3-dev libpng-dev libturbojpeg0-dev libwebp-dev
  libfreetype-dev libpcre2-dev zlib1g-dev"
data_packages="openclipart-png openclipart-svg wordnet-base"
test_packages="libgtest-dev fonts-noto-color-emoji unicode-cldr-core procps"

# setup_room GIB: that a build and what comes with it take, of which a build that is there has its part.
setup_room() {
  local wanted=$1 free
  have_torch || wanted=$((wanted + 6))
  free=$({ { du -sk build 2>/dev/null; echo 0; } | head -n 1; df -Pk .; } | awk 'NR == 1 { n = $1 } NR == 3 { n += $4 } END { print int(n / 1048576) }')
  [ "$free" -ge "$wanted" ] || fail "$PWD: $free GiB of disk are free, $wanted are needed; make room, or clone to another disk"
}

# setup_packages run|check: Debian and Ubuntu packages, with root or through sudo.
setup_packages() {
  local wanted=$build_packages missing=
  case $1 in
    run) wanted="$wanted $data_packages" ;;
    check) wanted="$wanted $data_packages $test_packages" ;;
  esac
  for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
  done
  [ -z "$missing" ] && return 0
  local sudo=
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      sudo=sudo
    else
      fail "packages are missing; as root run: apt-get install --no-install-recommends$missing"
    fi
  fi
  say "installing packages:$missing"
  local log; log=$(mktemp)
  { $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing; } \
    >"$log" 2>&1 || { tail -n 20 "$log" >&2; fail "apt-get install failed; packages wanted:$missing"; }
  rm -f "$log"
}

# A Python that has torch >= 2.7: the cache's virtual environment, the system's, or a new environment.
has_torch() { "$1" -c 'import importlib.metadata as m, sys
v = m.version("torch").split("."); sys.exit(not (int(v[0]), int(v[1])) >= (2, 7))' 2>/dev/null; }

have_torch() { has_torch "$cache/venv/bin/python3" || has_torch python3; }

setup_torch() {
  have_torch && return 0
  say "installing LibTorch (the PyPI wheel torch==2.11.0) into $cache/venv"
  mkdir -p "$cache"
  python3 -m venv "$cache/venv"
  "$cache/venv/bin/pip" install -q --disable-pip-version-check torch==2.11.0 \
    || fail "pip install torch==2.11.0 failed; install it into $cache/venv by hand"
}

# setup_build PRESET TARGET TESTS(ON|AUTO). AUTO: a build that is there already stays as it is; a new one has tests if
# GoogleTest is there.
setup_build() {
  local preset=$1 target=$2 tests=$3
  if [ "$tests" = ON ] || [ ! -e "build/$preset/build.ninja" ] || grep -qs '^TRIREME_TESTS:[A-Z]*=OFF' "build/$preset/CMakeCache.txt"; then
    say "configuring ($preset)"
    local log; log=$(mktemp)
    cmake --preset "$preset" -DTRIREME_TESTS="$tests" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; fail "cmake failed"; }
    sed -n 's/^-- \(Trireme .*\|  [A-Za-z0-9]* .*\)/\1/p' "$log" >&2
    rm -f "$log"
  fi
  say "building ($preset)"
  cmake --build "build/$preset" --target $target || fail "the build failed"
}
