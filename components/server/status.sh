# Esteira on a server: status. A reading, and what only a person wants to know: health, ages, disk, the release log.

# Phase status: a reading with more lines in it. Changes nothing and waits for no lock.
show_status() {
  echo "esteira-reading 1"
  list_what_runs
  echo "clock $(date -u '+%Y-%m-%dT%H:%M:%SZ')"
  list_releases | cut -d ' ' -f 1 |
    xargs -r docker inspect --format 'times {{.Id}} {{.Created}} {{.State.StartedAt}} {{.State.FinishedAt}}' 2>/dev/null 7>&- 8<&- 9<&-
  tell_disk
  tell_health
  show_history "$history_lines"
  echo end
}

# Prints how much of the disk that Docker uses is free, and how much there is: bytes.
tell_disk() {
  docker_folder=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null)
  # shellcheck disable=SC2046 # words: file system, size, used, available
  set -- $(df -Pk "${docker_folder:-/}" 2>/dev/null | tail -n 1)
  [ $# -lt 4 ] || echo "disk $(($4 * 1024)) $(($2 * 1024))"
}

# Prints what the declared health gate says of the serving container now, asked once, where it can be asked without
# changing anything: from inside the edge, else by a probe on its network, as the gate does.
tell_health() {
  # shellcheck disable=SC2046 # a fixed number of words
  set -- $(docker container inspect --format \
    '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}} {{if eq .HostConfig.NetworkMode "host"}}host 127.0.0.1{{else}}{{range $key, $value := .NetworkSettings.Networks}}{{$key}} {{$value.IPAddress}} {{end}}{{end}}' "$name" 2>/dev/null)
  [ $# -ge 2 ] || return 0
  if [ "$1" != running ]; then
    echo "health no it is $1"
    return 0
  fi
  gate=$health_test
  if [ "$gate" = auto ]; then
    if [ "$2" != - ]; then gate=image; elif [ -n "$health_port" ]; then gate=tcp; else gate=none; fi
  fi
  case $gate in
    http) tell_answer "http $health_timeout $health_scheme" "$3" "$4" ;;
    tcp) tell_answer "tcp $health_timeout" "$3" "$4" ;;
    image)
      case $2 in
        healthy) echo "health yes HEALTHCHECK says healthy" ;;
        -) echo "health - the image has no HEALTHCHECK" ;;
        *) echo "health no HEALTHCHECK says $2" ;;
      esac
      ;;
    *) echo "health - not asked: no health path, HEALTHCHECK or port is declared" ;;
  esac
}

# Asks once, by the probe's program: $1 are the first words of its line; $2 is the container's network, $3 its address.
tell_answer() {
  slot=$(show_slot)
  target=${slot#slot }:$health_port
  [ -n "$slot" ] || target=$3:$health_port
  case $1 in
    http*) question="${1% *} ${1##* }://$target$health_path" ;;
    *) question="$1 $target" ;;
  esac
  if [ -n "$slot" ]; then
    answer=$(printf '%s\n' "$question" | docker exec --interactive "$edge" sh -c "$probe_program" 2>/dev/null)
  elif docker image inspect "$edge_image" >/dev/null 2>&1; then
    answer=$(printf '%s\n' "$question" | docker run --rm --interactive --network "$2" --label "esteira.owner=$owner" \
      --label esteira.role=probe --log-driver none --entrypoint sh "$edge_image" -c "$probe_program" 2>/dev/null)
  else
    echo "health - not asked: the image of the probe is not here"
    return 0
  fi
  case $1 in
    http*)
      case $answer in
        *HTTP/*) status=${answer#*HTTP/} && status=${status#* } && status=${status%%[!0-9]*} && answer="HTTP $status from $health_path" ;;
        *) status= ;;
      esac
      healthy=no
      [ "$status" != "$health_status" ] || healthy=yes
      ;;
    *)
      healthy=no
      [ "$answer" != connected ] || healthy=yes
      ;;
  esac
  echo "health $healthy ${answer:-no answer}"
}
