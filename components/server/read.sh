# Esteira on a server: reading. What runs here, for the preview; changes nothing and waits for no lock.

# Prints what runs here, one thing a line, from a first line to an end line, so that half of it is no answer.
read_server() {
  echo "esteira-reading 1"
  list_what_runs
  echo end
}

# Prints the lines of a reading: "serving", then "made" and "age", and all others in any order. Every docker command is a
# process of its own, which takes longer than its answer: they run side by side, and each writes whole lines.
list_what_runs() {
  # As root the edge's files can be seen from here, once its process is known; docker exec takes longer than all else.
  slot_shown=
  if [ "$(id -u)" != 0 ]; then
    show_slot &
    slot_shown=yes
  fi
  show_architecture &
  show_releases &
  releases_shown=$!
  edge_runs=
  while read -r line; do
    [ -n "$line" ] || continue
    echo "$line"
    case $line in
      "made "*) tell_age "$line" ;;
      "edge running "*)
        edge_runs=yes
        [ -n "$slot_shown" ] || see_slot "${line##* }" || show_slot
        ;;
    esac
  done <<END
$(look_at_what_runs "$name" "$edge")
END
  [ -n "$edge_runs" ] || list_port_holders
  if ! wait "$releases_shown"; then
    explain_docker
    fail "The Docker daemon of server $server did not answer a moment ago, and does now. Try again."
  fi
  wait
}

# Prints what the daemon runs, as "arch amd64".
show_architecture() {
  look_at_architecture
  echo "arch $server_arch"
}

# Prints the releases that are here, as "release" and what list_releases says, and of those that run without the serving
# name what look_at_what_runs says; fails where Docker does not answer.
show_releases() {
  containers=$(list_containers) || return 1
  others=
  while read -r role id state container_name rest; do
    [ "$role" = release ] || continue
    echo "release $id $state $container_name $rest"
    case $state in created | exited | dead) continue ;; esac
    [ "$container_name" = "$name" ] || others="$others $id"
  done <<END
$containers
END
  # shellcheck disable=SC2086 # ids are words
  [ -z "$others" ] || look_at_what_runs $others | while read -r line; do [ -z "$line" ] || echo "$line"; done
}

# Prints, of the containers $*, the lines of the serving one, of the edge, and of each release that runs.
look_at_what_runs() {
  docker container inspect --format \
    "{{if eq .Name \"/$name\"}}serving {{.State.Status}} {{.RestartCount}} {{with .HostConfig.RestartPolicy.Name}}{{.}}{{else}}no{{end}} {{with index .Config.Labels \"esteira.owner\"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels \"esteira.image\"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels \"esteira.fingerprint\"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels \"esteira.commit\"}}{{.}}{{else}}-{{end}} {{.State.StartedAt}}
made {{.Id}} {{.Name}} {{.Config.Image}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.State.Pid}}
{{end}}{{if eq .Name \"/$edge\"}}edge {{.State.Status}} {{with index .Config.Labels \"esteira.edge\"}}{{.}}{{else}}-{{end}} {{with .HostConfig.RestartPolicy.Name}}{{.}}{{else}}no{{end}} {{.State.Pid}}
{{end}}{{if and .State.Running (eq (index .Config.Labels \"esteira.owner\") \"$owner\") (eq (index .Config.Labels \"esteira.role\") \"release\")}}running {{.Name}} {{range .NetworkSettings.Networks}}{{range .Aliases}}{{.}} {{end}}{{end}}
{{end}}" \
    "$@" 2>/dev/null
}

# Prints the slot that the running edge points at, as "slot parasite-blue"; nothing where there is none.
show_slot() {
  docker exec "$edge" sh -c "$slot_of_files" sh "" "$name" 2>/dev/null
}

# Prints the same from outside, where the edge's process is $1; fails where its files cannot be seen.
see_slot() {
  edge_files=/proc/$1/root
  [ -e "$edge_files/edge/$name/site" ] && sh -c "$slot_of_files" sh "$edge_files" "$name"
}

# The program of both: $1 stands before the edge's paths, $2 is the application.
# shellcheck disable=SC2016 # for the shell that it is given to
slot_of_files='
  if [ ! -e "$1/edge/$2/site" ]; then :
  elif [ -e "$1/dev/shm/$2-blue" ]; then echo "slot $2-blue"
  elif [ -e "$1/dev/shm/$2-green" ] || [ -e "$1/edge/$2/green" ]; then echo "slot $2-green"
  else echo "slot $2-blue"; fi'

# Prints for how many seconds the process in $1, a line "made …", has been running: a container that is started again and
# again never gets old.
tell_age() {
  # shellcheck disable=SC2086 # words
  set -- $1
  [ "$7" -gt 0 ] || return 0
  if ! read -r stat 2>/dev/null <"/proc/$7/stat"; then
    # Where others' processes can be seen, it has just ended.
    [ ! -r /proc/1/stat ] || echo "age 0"
    return 0
  fi
  # The second word is the program's name, in brackets, and may have blanks.
  # shellcheck disable=SC2086 # words
  set -- ${stat##*)}
  read_clock
  echo "age $((now / 100 - ${20} / 100))"
}

# Prints, for each published port, what holds it although neither the edge nor the serving container runs.
list_port_holders() {
  for port in $holdable_ports; do
    port_number=${port%/*}
    holder=$(docker ps --filter "publish=$port" --format '{{.Names}}' 2>/dev/null | head -n 1)
    if [ -n "$holder" ]; then
      echo "port $port_number container $holder"
    elif is_listened_to "${port#*/}" "$(printf %04X "$port_number")"; then
      echo "port $port_number process -"
    fi
  done
}

# Whether a process of this machine listens to the port that is $2 in hexadecimal, by protocol $1.
is_listened_to() {
  states=0A
  [ "$1" = tcp ] || states=07
  for table in "/proc/net/$1" "/proc/net/${1}6"; do
    # "12: 00000000:22B8 00000000:0000 0A …": the local address, then the state.
    grep -q ": [0-9A-F]*:$2 [0-9A-F]*:[0-9A-F]* $states " "$table" 2>/dev/null && return 0
  done
  return 1
}
