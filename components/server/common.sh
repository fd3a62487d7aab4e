# Esteira on a server: words to the person who deploys, time, a place for passing files, the lock.
#
# The files of this folder are put together by components/remote.py, in the order of its list, and arrive by stdin as one
# compound command: a shell parses it to its end before it runs anything, so a connection that is cut while the program
# travels runs nothing. No secret is ever an argument of a command: every local user can read those.
# Variables are global, as in any POSIX shell; a function's first lines say what it sets.

# Tells one step. The remote shell outlives its client and every write then fails: that is how a lost client is noticed.
say() {
  printf '%s\n' "$*" 2>/dev/null || client_lost=yes
}

# Tells what a person should know, though the run goes on.
warn() {
  printf 'warning: %s\n' "$*" >&2 2>/dev/null || client_lost=yes
}

# Shows what an application says, marked as such. A line of more than 64 kB hangs pulumi-command: long ones are cut.
show_lines() {
  cut -c 1-2000 | sed 's/^/  | /' 2>/dev/null
}

# Ends the run with the cause as its last words.
fail() {
  cause=$*
  printf 'error: %s\n' "$*" >&2 2>/dev/null || client_lost=yes
  leave 1
}

# Ends the run with status $1, and tells the release log. Nothing that was only passing stays.
leave() {
  end_deployment "$1"
  probe_close
  remove_passing_files
  exit "$1"
}

# Sets now: hundredths of a second since the machine started. Not the clock of the day, which may jump.
read_clock() {
  read -r uptime _ </proc/uptime
  now=$((${uptime%.*} * 100 + 1${uptime#*.} - 100))
}

# Sets took: the time since $1 (of read_clock) for a person, as "1.3 s".
measure() {
  read_clock
  took="$(((now - $1) / 100)).$(((now - $1) % 100 / 10)) s"
}

# Before the point of no return a lost or interrupted client means: stop here, nothing has changed.
still_wanted() {
  if [ -n "$client_lost" ] || [ -n "$interrupted" ]; then
    abandon
    fail "The connection was lost or the run interrupted before anything changed; what served before serves on."
  fi
}

# docker, without the descriptors of lock and probe: a child that outlives this shell must not keep the lock.
docker() {
  command docker "$@" 7>&- 8<&- 9<&-
}

# Prints what the last docker command that failed said: its first line, because the last only names the container, or
# where to find help.
docker_said() {
  sed -n '/^WARNING/d; /[^ ]/ { s/^docker: //; s/^Error response from daemon: //; p; q; }' "$passing/error"
}

# Sets daemon, what tells this Docker daemon from others, and live_restore; ends the run with what to do where none answers.
require_docker() {
  command -v docker >/dev/null 2>&1 ||
    fail "Docker is not installed on server $server. Install Docker Engine 20.10 or later there, as root: apt-get install docker.io"
  # A reading takes no lock, so it needs no name for the daemon; what it asks shows soon enough whether one answers.
  [ "$phase" != read ] || return 0
  ask_for_daemon || { explain_docker; ask_for_daemon; } ||
    fail "The Docker daemon of server $server does not tell which one it is. Look at it there: docker info"
}

# Sets daemon and live_restore; fails where Docker does not answer. Two runs that take one daemon for two have two locks.
ask_for_daemon() {
  message=$(docker info --format '{{.LiveRestoreEnabled}} {{.ID}}' 2>/dev/null) || return 1
  live_restore=${message%% *} daemon=$(printf '%s' "${message#* }" | tr -dc 'A-Za-z0-9')
  [ -n "$daemon" ]
}

# Ends the run with what to do where Docker does not answer; why it does not, docker version says in better words than others.
explain_docker() {
  message=$(docker version --format '{{.Server.Arch}}' 2>&1 >/dev/null) && return 0
  case $message in
    *"permission denied"*)
      fail "The user $(id -un) may not use Docker on server $server. Set sudo: true for that server, or type there, as root: usermod -aG docker $(id -un)" ;;
    *)
      fail "The Docker daemon of server $server does not answer ($message). Start it there, as root: systemctl start docker" ;;
  esac
}

# Sets server_arch: what the daemon runs, amd64 or arm64, which is not always what the kernel is.
look_at_architecture() {
  [ -n "$server_arch" ] || server_arch=$(docker version --format '{{.Server.Arch}}' 2>/dev/null)
}

# The daemon may be killed or updated in the middle. This shell outlives that, and leaves things in order when it is back.
await_daemon() {
  docker version >/dev/null 2>&1 && return 0
  warn "the Docker daemon of server $server does not answer; waiting up to 2 minutes for it, to leave things in order"
  read_clock && daemon_gone=$now
  until docker version >/dev/null 2>&1; do
    read_clock
    [ $((now - daemon_gone)) -lt 12000 ] || return 1
    sleep 0.5
  done
}

# Sets run_directory: one folder for all who may use this daemon, and for nobody else: what is noted there is acted upon.
choose_run_directory() {
  docker_socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
  docker_group=$(stat -L -c %g "${docker_socket#unix://}" 2>/dev/null)
  for run_directory in "/run/lock/esteira-$daemon" "/tmp/esteira-$daemon"; do
    # What is there is used, so that who comes first, root or not, decides for all.
    [ -e "$run_directory" ] || continue
    use_run_directory || fail "The folder $run_directory on server $server is not made by root, $(id -un) or the group of Docker's socket, or it is closed to $(id -un). Let all who deploy there be root or of that group, look who made it (ls -ld $run_directory), and remove it."
    return 0
  done
  for run_directory in "/run/lock/esteira-$daemon" "/tmp/esteira-$daemon"; do
    mkdir -m 0700 "$run_directory" 2>/dev/null || use_run_directory || continue
    # Only who is of a group can give a folder to it.
    [ -z "$docker_group" ] || { chgrp "$docker_group" "$run_directory" && chmod 0770 "$run_directory"; } 2>/dev/null
    return 0
  done
  fail "No folder for the lock can be made on server $server: neither /run/lock nor /tmp is writable. Check free disk space and permissions there."
}

# Whether run_directory is a folder that root, this user, or somebody of Docker's group has made, and that others cannot write.
use_run_directory() {
  for attempt in 1 2 3 4 5; do
    # shellcheck disable=SC2046 # three words
    set -- $(stat -c '%u %g %a' "$run_directory" 2>/dev/null)
    [ ! -L "$run_directory" ] && [ -d "$run_directory" ] && [ -w "$run_directory" ] && case ${3:-7} in *[2367]) false ;; esac &&
      { [ "$1" = 0 ] || [ "$1" = "$(id -u)" ] || [ "$2" = "$docker_group" ]; } && return 0
    # Who makes it gives it to the group a moment later.
    [ "$attempt" = 5 ] || sleep 0.2
  done
  return 1
}

# Waits for this daemon's lock, at most lock_timeout seconds where that is set; the kernel frees it when its holder ends,
# however it ends.
take_lock() {
  command -v flock >/dev/null 2>&1 ||
    fail "flock is missing on server $server. Install it there, as root: apt-get install util-linux"
  choose_run_directory
  lock=$run_directory/lock
  [ -e "$lock" ] || (set -C && umask 0 && : >"$lock") 2>/dev/null
  exec 9<"$lock" || fail "The lock $lock on server $server cannot be opened. Check its permissions."
  if ! flock -n 9; then
    say "waiting for the lock of server $server, held by $(lock_holder)"
    # shellcheck disable=SC2086 # two words or none
    flock ${lock_timeout:+-w "$lock_timeout"} 9 ||
      fail "Another deployment has held server $server for more than $lock_timeout s: $(lock_holder). Wait for it or stop it, then try again."
  fi
  note "$lock.holder" "$operator, process $$, since $(date -u '+%Y-%m-%d %H:%M:%S UTC')"
}

# Writes the line $2 to file $1 by rename, so that nobody reads half of it.
note() {
  (set -C && umask 022 && printf '%s\n' "$2" >"$1.$$") 2>/dev/null && mv -f "$1.$$" "$1" 2>/dev/null
}

# Leaves this run's mark. The timer of an earlier run that finds another one's has nothing left to do.
mark_run() {
  read_clock && run_mark=$$.$now
  note "$run_directory/$name.run" "$run_mark"
}

# Whether no run of this application has begun since this one did.
is_last_run() {
  last_run=
  read -r last_run 2>/dev/null <"$run_directory/$name.run"
  [ "$last_run" = "$run_mark" ]
}

# Prints who holds the lock, as he himself wrote it down.
lock_holder() {
  holder='somebody who has not said who'
  [ -r "$lock.holder" ] && read -r holder <"$lock.holder"
  printf '%s' "$holder"
}

# Sets passing: a private folder in memory for what must be a file for a moment. Only the lock's holder makes one, so
# whatever is there of this daemon is left over from a run that was killed.
make_passing_files() {
  passing_base=/dev/shm
  [ -d "$passing_base" ] && [ -w "$passing_base" ] || passing_base=/tmp
  rm -rf "$passing_base/esteira-$daemon."* 2>/dev/null
  passing=$(mktemp -d "$passing_base/esteira-$daemon.XXXXXX") ||
    fail "No passing folder can be made in $passing_base on server $server. Check free space there: df $passing_base"
}

# Removes the private folder, with whatever secret was in it.
remove_passing_files() {
  [ -n "$passing" ] && rm -rf "$passing"
  passing=
}
