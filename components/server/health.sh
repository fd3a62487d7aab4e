# Esteira on a server: the health gate. First probe at once, then one an interval; never a busy wait.

# What runs inside the probe's container or the edge: one line "kind seconds target" in, one line of answer out. Stock
# busybox or Debian; the first status line counts, so that a redirect is judged as a redirect. The bound is timeout's, not
# wget's: Debian's busybox crashes on wget -T.
#
# It also moves the edge's markers (edge.sh). After a move on trial it stays when its input has ended, and guards: unless the
# mark has become another one it takes it away after that many seconds, even if no process of ours on the server lives.
# shellcheck disable=SC2016 # expanded in that container
probe_program='
trial=/dev/shm/
while read -r kind seconds target; do
  said="" lasting=/edge/$target/green
  case $kind in
    http) said=$(timeout "$seconds" wget -S -O /dev/null --no-check-certificate "$target" 2>&1 </dev/null) ;;
    slot)
      said=blue
      if [ ! -e "/edge/$target/site" ]; then
        said=none
      elif [ ! -e "$trial$target-blue" ]; then
        if [ -e "$trial$target-green" ] || [ -e "$lasting" ]; then said=green; fi
      fi ;;
    lasts) [ -e "$trial$target-green" ] || [ -e "$trial$target-blue" ] || said=yes ;;
    point-green) : >"$lasting" && rm -f "$trial$target-green" "$trial$target-blue" && said=green ;;
    point-blue) rm -f "$lasting" "$trial$target-green" && rm -f "$trial$target-blue" && said=blue ;;
    try-green) echo $$ >"$trial$target-green" && rm -f "$trial$target-blue" && guarded=$target-green left=$seconds said=green ;;
    try-blue) echo $$ >"$trial$target-blue" && rm -f "$trial$target-green" && guarded=$target-blue left=$seconds said=blue ;;
    sum) said=$(cat $target 2>/dev/null | sha256sum) ;;
    upstreams) said=$(timeout "$seconds" wget -q -O - http://localhost:2019/reverse_proxy/upstreams 2>&1 </dev/null) ;;
    tcp) said=$(timeout "$seconds" nc -z -w "$seconds" ${target%:*} ${target##*:} 2>&1 </dev/null) && said=connected ;;
  esac
  answer=$(printf "%s\n" "$said" | grep -m 1 "HTTP/") || answer=$(printf "%s\n" "$said" | grep -v "^ *$" | tail -n 1)
  [ -n "$answer" ] || answer="no answer"
  printf "%s\n" "$answer" | tr -d "\r"
done
while [ -n "$guarded" ] && [ "$(cat "$trial$guarded" 2>/dev/null)" = $$ ]; do
  [ "$left" -gt 0 ] || rm -f "$trial$guarded"
  left=$((left - 1))
  sleep 1
done'

# Starts one probe for the whole gate, on network $1, as a co-process: asking it costs no docker command.
probe_open() {
  mkfifo "$passing/ask" "$passing/answer" ||
    fail "No passing files can be made on server $server. Check free space there: df $passing_base"
  # Not by the function docker: as a subshell that would hold the lock for as long as the probe lives.
  command docker run --rm --interactive --name "$name-probe-$$" --network "$1" --label "esteira.owner=$owner" \
    --label esteira.role=probe --log-driver none --entrypoint sh "$edge_image" -c "$probe_program" \
    <"$passing/ask" >"$passing/answer" 2>"$passing/probe-error" 9<&- &
  probe_attach
}

# The same in the running edge, container $1: what is probed there is what the edge will reach.
probe_open_in_edge() {
  mkfifo "$passing/ask" "$passing/answer" || return 1
  command docker exec --interactive "$1" sh -c "$probe_program" \
    <"$passing/ask" >"$passing/answer" 2>"$passing/probe-error" 9<&- &
  probe_attach
}

# Opens both ends of the co-process that was just started.
probe_attach() {
  probe_process=$!
  exec 7>"$passing/ask" 8<"$passing/answer"
  # Open at both ends now: the names are not needed, and free for the next probe.
  rm -f "$passing/ask" "$passing/answer"
  probe_is_open=yes
}

# Asks the probe; sets answer. Fails when the probe itself is gone.
probe_ask() {
  printf '%s\n' "$1" >&7 2>/dev/null && read -r answer <&8
}

# Ends the co-process: it ends by itself at the end of its input. One that guards a switch on trial stays as long as that.
probe_close() {
  [ -n "$probe_is_open" ] || return 0
  exec 7>&- 8<&-
  [ -n "$on_trial" ] || wait "$probe_process" 2>/dev/null
  probe_is_open='' on_trial=''
  return 0
}

# Sets gate: what the release is judged by. auto: the image's own HEALTHCHECK, else whether the port answers.
choose_gate() {
  gate=$health_test
  [ "$gate" = auto ] || return 0
  if [ "$(docker image inspect --format '{{if .Config.Healthcheck}}yes{{end}}' "$image")" = yes ]; then
    gate=image
  elif [ -n "$health_port" ]; then
    gate=tcp
  else
    gate=none
  fi
}

# Makes sure that what the gate needs is there before anything stops.
prepare_gate() {
  choose_gate
  case $gate in
    http | tcp) ;;
    *) return 0 ;;
  esac
  [ -z "$probe_is_open" ] || return 0
  docker image inspect "$edge_image" >/dev/null 2>&1 || pull "$edge_image"
  probe_open "$1"
  probe_ask "tcp 1 127.0.0.1:9" || {
    refuse "The probe of the health gate does not start on server $server" "$(cat "$passing/probe-error")"
  }
}

# Waits until container $1 is healthy; sets healthy_after. Otherwise sets verdict, for a person, and fails.
pass_gate() {
  read_clock && gate_start=$now
  failures=0
  last_answer='none yet'
  while :; do
    probe_once "$1" && measure "$gate_start" && healthy_after=$took && return 0
    [ -n "$verdict" ] && return 1
    read_clock
    [ $((now - gate_start)) -ge "$health_start_period" ] && failures=$((failures + 1))
    if [ "$failures" -ge "$health_retries" ] && [ "$gate" != image ]; then
      measure "$gate_start"
      verdict="it did not get healthy within $took ($failures probes in a row failed after the start period)"
      return 1
    fi
    sleep "$health_interval"
  done
}

# One probe of container $1. Fails with verdict set where waiting is of no use, with verdict empty where it is.
probe_once() {
  verdict=
  # shellcheck disable=SC2046 # a fixed number of words
  set -- "$1" $(docker inspect --format \
    '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.RestartCount}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}} {{.HostConfig.Memory}} {{if eq .HostConfig.NetworkMode "host"}}127.0.0.1{{else}}{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}{{end}}' "$1" 2>/dev/null)
  container_state=${2:-gone}
  exit_code=${3:--}
  if [ "$container_state" = gone ] && ! docker version >/dev/null 2>&1; then
    verdict="the Docker daemon does not answer any more"
    return 1
  fi
  if [ "$container_state" != running ] || [ "${5:-0}" -gt 0 ]; then
    verdict="it is $container_state (exit code $exit_code)"
    # Docker notices that the kernel killed it for its memory by an event, which may come late or never.
    if [ "${4:-false}" = true ] || { [ "$exit_code" = 137 ] && [ "${7:-0}" != 0 ]; }; then
      verdict="$verdict: it needed more memory than its limit and was killed (container.memory)"
    fi
    return 1
  fi
  case $gate in
    http)
      probe_ask "http $health_timeout $health_scheme://${probe_address:-$8}:$health_port$health_path" || { probe_lost && return 1; }
      last_answer=$answer
      case $answer in
        *HTTP/*) status=${answer#*HTTP/} && status=${status#* } && status=${status%%[!0-9]*} && last_answer="HTTP $status from $health_path" ;;
        *) status= ;;
      esac
      [ "$status" = "$health_status" ] ;;
    tcp)
      probe_ask "tcp $health_timeout ${probe_address:-$8}:$health_port" || { probe_lost && return 1; }
      last_answer=$answer
      [ "$answer" = connected ] ;;
    image)
      last_answer="HEALTHCHECK says $6"
      [ "$6" = unhealthy ] && verdict="the image's HEALTHCHECK calls it unhealthy"
      [ "$6" = healthy ] ;;
    none)
      read_clock
      last_answer='not asked: no health path, HEALTHCHECK or port is declared'
      [ $((now - gate_start)) -ge 100 ] ;;
  esac
}

# Sets verdict where the probe itself is gone.
probe_lost() {
  verdict="it could not be probed: $(tail -n 1 "$passing/probe-error" 2>/dev/null)"
}

# Shows why container $1 did not pass: state, last answer, last log lines.
show_failure() {
  warn "$2 failed: $verdict; last answer: $last_answer"
  warn "its last log lines:"
  docker logs --tail 20 "$1" 2>&1 | show_lines >&2
}
