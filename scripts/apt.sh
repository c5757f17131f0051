# How the scripts beside this one install parts for the tests on Debian and Ubuntu. They source it.

fail() {
  echo "$1" >&2
  exit 2
}

# prepare_apt PART PROGRAMS: set ID and as_root, or say what to do instead.
prepare_apt() {
  . "${OS_RELEASE:-/etc/os-release}" 2>/dev/null || ID=unknown
  [[ $ID == debian ]] || [[ $ID == ubuntu ]] ||
    fail "This installs $1 on Debian and Ubuntu only: put $2 on the PATH, then repeat."
  as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "To install $1, run scripts/${0##*/} as root, or install sudo."
    as_root=(sudo)
  fi
}

# apt_install PART SIZES PACKAGE...
apt_install() {
  echo "Installing $1 with apt-get, for the tests ($2)." >&2
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:3}" >/dev/null
}
