# shellcheck shell=bash
# Sourced by scripts that do one thing after the other: says what is being done, and how long it took.

# step NAME COMMAND...: runs COMMAND; if it fails, says so and ends the script with its code.
step() {
  local name=$1 start=$SECONDS code=0
  shift
  printf '==> %s\n' "$name"
  "$@" || code=$?
  if ((code != 0)); then
    printf '==> %s: FAILED (code %d) after %d s\n' "$name" "$code" "$((SECONDS - start))" >&2
    exit "$code"
  fi
  printf '==> %s: done in %d s\n' "$name" "$((SECONDS - start))"
}

# skip NAME REASON: says that a step is left out.
skip() {
  printf '==> %s: skipped, %s\n' "$1" "$2"
}
