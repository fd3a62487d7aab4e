# Esteira on a server: strategy blueGreen. The candidate starts beside the running release, in the slot that gets no
# requests; when it is healthy the edge is pointed at that slot; when the old slot is drained its release is stopped.
# What serves is what runs in the slot that the edge points at; names only follow.
#
# With several servers the switch is on trial until all of them have switched: the release before keeps running, with its
# name and restart policy, and the candidate gets neither before phase confirm. A switch that nobody confirms is taken back.

# Sets, beyond look_around, serving_* by the edge's slot, and held where this rollout's own switch, which is to be confirmed,
# still holds.
look_around_slots() {
  held=''
  # It comes up while the rest is looked at; where no edge runs, enter_edge finds out.
  [ -n "$probe_is_open" ] || probe_open_in_edge "$edge"
  look_around
  look_at_edge
  enter_edge || return 0
  slot_holder "$active"
  if [ -n "$holder_id" ] && [ "$holder_id" != "$serving_id" ]; then
    if [ "$phase" = confirm ] && [ "$holder_id" = "$declared_id" ] && is_noted switched; then
      held=yes
      return 0
    fi
    # The name follows when a release has proven itself. A run was cut off before that: while what has the name still
    # runs, that is what serves, and the new release has to prove itself again.
    [ "$serving_state" = running ] && in_slot "$serving_id" "$(other_slot "$active")" &&
      point_edge "$(other_slot "$active")" && return 0
    if [ -n "$confirm_timeout" ] && ! finish_confirmation; then
      # With several servers nothing serves that was not confirmed.
      take_back_slots
      look_around
      return 0
    fi
    serving_id=$holder_id
    # shellcheck disable=SC2046 # three words
    set -- $(docker inspect --format '{{index .Config.Labels "esteira.release"}} {{index .Config.Labels "esteira.commit"}} {{.HostConfig.RestartPolicy.Name}}' "$serving_id")
    serving_release=$1 serving_commit=$2 serving_restart=$3
  fi
}

# A confirmation was cut off when the release before had given its name away, and the confirmed one had not yet got it: now it
# gets it. Fails where that is not so.
finish_confirmation() {
  [ -z "$serving_id" ] && points_to_stay && docker rename "$holder_id" "$name"
}

# Sets holder_id: the container that runs in slot $1.
slot_holder() {
  holder_id=
  while read -r id state aliases; do
    [ "$state" = running ] || [ "$state" = paused ] || [ "$state" = restarting ] || continue
    case " $aliases " in *" $name-$1 "*) holder_id=$id ;; esac
  done <<END
$slots
END
}

# Phase candidate: the release that is declared runs, healthy, in the free slot. Nothing that serves is touched.
candidate() {
  prepare_candidate "$@"
  [ -n "$unchanged" ] || keep_for_a_while
}

# Sets unchanged where the declared release serves already, else candidate_id, candidate_name and free (its slot).
prepare_candidate() {
  unchanged=''
  [ -n "$looked" ] || look_around_slots
  if [ -n "$active" ] && [ -n "$declared_id" ] && [ "$declared_id" = "$serving_id" ] && in_slot "$serving_id" "$active"; then
    unchanged=yes
    [ "$declared_state $declared_name" = "running $name" ] || prove_serving
    say "unchanged: $name runs commit $short_commit"
    return 0
  fi
  make_network
  choose_slot
  stop_others
  slot_options="--network $network --network-alias $name-$free"
  if [ -n "$declared_id" ]; then
    candidate_id=$declared_id candidate_name=$declared_name
    [ "$declared_state" = running ] || say "release $short_commit is still on the server: nothing to pull"
  else
    fetch_image
    [ "$phase" != candidate ] || run_pre_deploy "$@"
    candidate_name=$release-candidate
    create_container "$candidate_name" release yes "$@" ||
      refuse "The container of the new release cannot be created" "$(docker_said)"
    candidate_id=$created_id made_now=yes
  fi
  still_wanted
  prepare_gate "$network"
  start_candidate
}

# Sets free: the slot that the edge does not point at. Before there is an edge, the declared release stays where it runs.
choose_slot() {
  free=blue
  if [ -n "$active" ]; then
    free=$(other_slot "$active")
  else
    slot_holder green
    [ -z "$holder_id" ] || [ "$holder_id" != "$declared_id" ] || free=green
    [ -z "$serving_id" ] || [ "$serving_id" = "$declared_id" ] || ! in_slot "$serving_id" blue || free=green
  fi
}

# Whether container $1, running or not, has the alias of slot $2.
in_slot() {
  printf '%s\n' "$slots" | grep "^$1 " | grep -q " $name-$2 "
}

# Starts the candidate in the free slot and waits until it is healthy; otherwise it goes, and the run ends.
start_candidate() {
  read_clock && candidate_start=$now
  probe_address=$name-$free
  slot_holder "$free"
  if [ "$holder_id" != "$candidate_id" ]; then
    [ -n "$made_now" ] || move_to_slot
    start_container "$candidate_id" || refuse "Release $short_commit did not start on server $server" "$(docker_said)"
  fi
  if pass_gate "$candidate_id"; then
    still_wanted
    say "healthy after $healthy_after: $last_answer"
    return 0
  fi
  show_failure "$candidate_id" "the health gate of release $short_commit"
  abandon
  fail "Release $short_commit is not healthy on server $server: $verdict; last answer: $last_answer. $(still_serving)"
}

# Prints, for the end of an error, what serves now that the candidate has failed.
still_serving() {
  if [ -n "$serving_id" ]; then
    echo "Nothing was changed: commit $(printf %.7s "$serving_commit") serves on."
  else
    echo "No release served before, and none serves now."
  fi
}

# A kept release gets the free slot's alias before it is started, unless that is the one that it had. Where no edge answers
# the network may be another of the same name by now.
move_to_slot() {
  [ -z "$active" ] || [ "$declared_state" != exited ] || ! in_slot "$candidate_id" "$free" || return 0
  stop_container "$candidate_id"
  docker network disconnect --force "$network" "$candidate_id" >/dev/null 2>&1
  docker network connect --alias "$name-$free" "$network" "$candidate_id" 2>"$passing/error" ||
    refuse "Release $short_commit cannot join network $network" "$(docker_said)"
}

# The declared release is the serving one, but somebody stopped it, or a run was cut off before it had its name.
prove_serving() {
  [ "$declared_state" = running ] || say "the serving release was $declared_state: starting it"
  candidate_id=$serving_id candidate_name=$name probe_address=$name-$active
  prepare_gate "$network"
  start_container "$serving_id" || fail "Release $short_commit does not start on server $server: $(docker_said)"
  pass_gate "$serving_id" && return 0
  show_failure "$serving_id" "the health gate of release $short_commit"
  fail "Release $short_commit is declared and started, but not healthy on server $server: $verdict; last answer: $last_answer."
}

# An abandoned candidate eats jobs, memory and connections: unless it is switched to, it goes after a while. The timer is
# this very shell's child, without its lock, and ends as soon as another run of this application has begun.
keep_for_a_while() {
  (
    trap - INT TERM
    exec 9<&-
    probe_is_open='' passing='' recorded=yes lock_timeout=
    waited=0
    while [ "$waited" -lt "$candidate_lifetime" ]; do
      sleep 5
      waited=$((waited + 5))
      is_last_run || exit 0
    done
    take_lock
    is_last_run || exit 0
    make_passing_files
    finish_stopping
    look_around_slots
    [ "$serving_id" = "$candidate_id" ] || {
      abandon
      recorded='' && record_deployment 'not switched' "Its candidate was not switched to within $candidate_lifetime s and was removed."
    }
    leave 0
  ) </dev/null >/dev/null 2>&1 7>&- 8<&- &
}

# Phase switch: the edge points at the candidate, and the release before it is drained and stopped; with several servers
# that waits for phase confirm.
switch() {
  [ "$phase" != switch ] || trial=$confirm_timeout
  switch_slots "$@"
  if [ -n "$trial" ]; then
    note_down switched
    say "on trial: commit $short_commit serves until all servers have switched, at most $trial s, or is taken back"
  elif [ -z "$unchanged" ]; then
    settle_switch
  fi
}

# Phase confirm: all servers have switched. Fails where the switch does not hold any more: then it is made again, to stay.
confirm_slots() {
  look_around_slots
  looked=yes
  [ -n "$held" ] || return 1
  candidate_id=$declared_id old_id=$serving_id old_slot=$(other_slot "$active")
  docker update --restart "$restart" "$candidate_id" >/dev/null
  point_edge "$active" || { reopen_edge && point_edge "$active"; } ||
    fail "The edge of $name on server $server does not answer, so the switch to commit $short_commit is not confirmed. Look at the edge there: docker logs $edge"
  settle_switch
}

# Makes the candidate serve: as long as it is confirmed in time where trial is set.
switch_slots() {
  prepare_candidate "$@"
  if [ -n "$unchanged" ]; then
    trial=''
    settle_slots
    prune_releases
    return 0
  fi
  tell_again
  old_id=$serving_id old_slot=$active took_over='' replaced_edge=''
  [ "$old_id" != "$candidate_id" ] || old_id=''
  if edge_is_declared; then
    configure_running_edge "$free"
    if [ -n "$trial" ]; then guard_switch; else docker update --restart "$restart" "$candidate_id" >/dev/null; fi
    move_edge "$free" || {
      return_to_old
      abandon
      fail "The edge of $name on server $server does not answer: release $short_commit was not switched to. $taken_back Look at the edge there: docker logs $edge"
    }
  else
    bring_edge
    [ -z "$trial" ] || guard_switch
  fi
  measure "$candidate_start"
  say "switched to commit $short_commit, $took after its start"
  watch_release
}

# What serves has proven itself: it gets the name, and what it has replaced goes.
settle_switch() {
  [ -z "$replaced_edge" ] || name_edge
  give_slot_names
  drain
  remove_other_edge
  prune_releases
}

# The release has the requests now; if it fails within the time of watch, the edge points back.
watch_release() {
  read_clock && watch_start=$now
  [ "$watch" -gt 0 ] || return 0
  failures=0 asked=0 unanswered=0
  while read_clock && [ $((now - watch_start)) -lt "$watch" ]; do
    sleep "$health_interval"
    asked=$((asked + 1))
    if probe_once "$candidate_id"; then
      failures=0
    else
      failures=$((failures + 1)) unanswered=$((unanswered + 1)) failed_answer=$last_answer
      [ -z "$verdict" ] && [ "$failures" -lt "$health_retries" ] && continue
      [ -n "$verdict" ] || verdict="$failures probes in a row failed after the switch"
      take_back_switch
    fi
  done
  # One that is well every other time is not well.
  [ "$unanswered" = 0 ] || [ $((unanswered * 2)) -lt "$asked" ] || {
    verdict="$unanswered of $asked probes failed after the switch"
    take_back_switch
  }
  measure "$watch_start"
  say "watched for $took: $last_answer"
}

# The release failed while it was watched: the edge points back, and the run ends.
take_back_switch() {
  last_answer=$failed_answer
  show_failure "$candidate_id" "release $short_commit, watched after the switch,"
  if [ "$strategy" = recreate ]; then take_back; else point_back; fi
  # Nothing is left for the guard to take back.
  mark_run
  fail "Release $short_commit failed on server $server after the switch: $verdict; last answer: $failed_answer. $taken_back"
}

# Sets taken_back, the sentence about it.
point_back() {
  if [ -n "$took_over$replaced_edge" ]; then
    give_port_back
  elif [ -n "$old_id" ]; then
    return_to_old
  else
    probe_close
    if [ -n "$domain" ]; then remove_site; else remove_own_edge; fi
    edge_id='' taken_back="No release served before, and none serves now."
  fi
  abandon
}

# The edge points at the old release, for sure: it may have been pointed away from it although its answer was lost. Where
# that cannot be known the candidate must not stop. Sets taken_back.
return_to_old() {
  if [ -z "$old_slot" ] || point_edge "$old_slot" || { reopen_edge && point_edge "$old_slot"; }; then
    taken_back="The edge points back to commit $(printf %.7s "$serving_commit")."
    [ -n "$serving_id" ] || taken_back="No release served before, and none serves now."
  else
    candidate_id=''
    taken_back="The edge does not answer, so release $short_commit was left running; the next up puts it right."
  fi
}

# The co-process in the edge has ended, with the Docker daemon or with the edge: opens another when both are back.
reopen_edge() {
  await_daemon || return 1
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    probe_close
    look_at_edge
    enter_edge && return 0
    [ "$attempt" = 10 ] || sleep 1
  done
  return 1
}

# Names follow the switch: the release before gets its own name, the one that serves the declared name.
give_slot_names() {
  named=$(docker inspect --format '{{.Name}}' "$candidate_id" 2>/dev/null) || { await_daemon && named=$(docker inspect --format '{{.Name}}' "$candidate_id"); }
  if [ -n "$old_id" ] && [ "$old_id" != "$candidate_id" ]; then
    tell_adopted
    give_own_name "$old_id" || {
      # Docker renames none that it is about to start again; without a wait this stop outlives nobody.
      docker stop --time 0 "$old_id" >/dev/null 2>&1
      docker rename "$old_id" "$serving_release" 2>/dev/null
    }
  fi
  [ "$named" = "/$name" ] || give_serving_name "$candidate_id"
}

# The declared release serves already: what a cut-off run left is put right.
settle_slots() {
  candidate_id=$serving_id
  docker update --restart "$restart" "$serving_id" >/dev/null
  current=$(docker inspect --format '{{.Id}}' "$name" 2>/dev/null)
  if [ "$current" != "$serving_id" ]; then
    if [ -n "$current" ]; then
      old_release=$(docker inspect --format '{{index .Config.Labels "esteira.release"}}' "$current")
      docker rename "$current" "${old_release:-$name-before-$(printf %.12s "$current")}"
    fi
    give_serving_name "$serving_id"
  fi
  if edge_is_declared; then
    configure_running_edge "$active"
  else
    free=$active old_slot=$active took_over='' replaced_edge=''
    bring_edge
    [ -z "$replaced_edge" ] || name_edge
  fi
  remove_other_edge
  while read -r id state _; do
    [ -n "$id" ] && [ "$id" != "$serving_id" ] || continue
    [ "$state" = exited ] || [ "$state" = created ] || { old_id=$id old_slot=$(other_slot "$active") && drain; }
  done <<END
$slots
END
  stop_others
}

# Requests in flight are let finish before the old release is stopped; what is cut at the end of the drain time is said.
drain() {
  [ -n "$old_id" ] && [ -z "$took_over" ] || return 0
  read_clock && drain_start=$now
  # If the daemon is killed from here on, the old release does not wake.
  forbid_restart "$old_id"
  sleep 0.1
  while count_in_flight "$old_slot" && [ "$in_flight" -gt 0 ]; do
    read_clock
    [ $((now - drain_start)) -lt "$drain_time" ] || break
    sleep 0.2
  done
  measure "$drain_start"
  if [ "$in_flight" -gt 0 ]; then
    warn "$in_flight requests or streams were still open after $took (drainTime) and are cut"
  else
    say "drained, $took"
  fi
  end_container "$old_id"
}

# Whether the edge runs with the declared image and published ports.
edge_is_declared() {
  [ -n "$active" ] && [ "$edge_mark" = "$edge_fingerprint" ]
}

# Puts the edge in front of the candidate: the shared one for a domain, one of its own for plain ports. Where the switch is
# on trial, its file says the other slot.
bring_edge() {
  lasting=$free
  [ -z "$trial" ] || lasting=$(other_slot "$free")
  if [ -z "$domain" ] || { [ -n "$edge_id" ] && [ "$edge_mark" != "$edge_fingerprint" ]; }; then
    install_edge
  else
    add_site "$lasting"
    [ -z "$trial" ] || try_edge "$free" ||
      fail "The shared edge does not answer on server $server. Look at it there: docker logs $edge"
  fi
}

# What is left where an application got a domain, or lost it.
remove_other_edge() {
  if [ -n "$domain" ]; then remove_own_edge; else remove_site; fi
}

# Puts an edge in front of the candidate: the first one, one with other ports or image, or one that takes the port over
# from a container that publishes it itself (adoption). Everything is made ready first; the gap is stop and start.
install_edge() {
  set --
  port_number=0 edge_address=http://localhost:10000/
  if [ -n "$domain" ]; then
    edge_address=http://localhost:80/
    # shellcheck disable=SC2086 # words
    set -- $shared_ports
    # Where the new one does not come to serve, the one before has this application's site, too.
    docker network connect "$network" "$edge_id" 2>/dev/null
  else
    for published in $published_ports; do
      set -- "$@" "--publish=$published:$((10000 + port_number))"
      port_number=$((port_number + 1))
    done
  fi
  create_edge "$edge-next" "$@"
  # The configuration before, for the way back: both edges have the same volume.
  [ -z "$edge_id" ] || docker cp "$edge_id:/edge" "$passing/edge-before" 2>/dev/null
  # The container that has the port stops now, and cannot come back by a file of the edge: such a switch lasts.
  [ -n "$edge_id" ] || [ -z "$serving_id" ] || [ -z "$(docker port "$serving_id")" ] || took_over=yes
  [ -z "$took_over" ] || lasting=$free
  configure_stopped_edge "${active:-$lasting}"
  [ -n "$trial" ] && [ -z "$took_over" ] || docker update --restart "$restart" "$candidate_id" >/dev/null
  still_wanted
  read_clock && gap_start=$now
  probe_close
  if [ -n "$edge_id" ]; then
    stop_container "$edge_id" 2
  elif [ -n "$took_over" ]; then
    stop_container "$serving_id"
  fi
  replaced_edge=$edge_id
  if ! start_created_edge; then
    advise "$message"
    give_port_back
    abandon
    fail "The edge does not start on server $server: $message. $advice $taken_back"
  fi
  # One that applications share is not on trial: another's deployment would take the two for a replacement that was cut off.
  [ -n "$replaced_edge" ] && [ -z "$domain" ] || name_edge
  measure "$gap_start"
  if [ -n "$took_over" ]; then
    say "the edge took the port over from commit $(printf %.7s "$serving_commit"); not served for $took"
  else
    say "the edge runs, $took"
  fi
}

# Starts the edge that was made, waits until it answers and points it at the free slot. Sets message where it does not.
start_created_edge() {
  docker start "$created_edge" >/dev/null 2>"$passing/error" || { message=$(docker_said) && return 1; }
  edge_id=$created_edge edge_state=running edge_mark=$edge_fingerprint
  read_clock && edge_start=$now
  # Its volume may still say that another slot serves.
  if enter_edge && if [ -n "$took_over" ]; then point_edge "$free"; else move_edge "$free"; fi; then
    while probe_ask "http 2 $edge_address"; do
      case $answer in *HTTP/*) return 0 ;; esac
      read_clock
      [ $((now - edge_start)) -lt 1000 ] || break
      sleep 0.05
    done
  fi
  message="it does not answer: $(docker logs --tail 1 "$created_edge" 2>&1)"
  return 1
}

# What had the port before has it again.
give_port_back() {
  await_daemon
  probe_close
  docker rm --force --volumes "$created_edge" >/dev/null 2>&1
  edge_id=$replaced_edge edge_state=replaced
  if [ -n "$took_over" ]; then
    remove_own_edge
    [ "$serving_restart" = no ] || docker update --restart "$serving_restart" "$serving_id" >/dev/null
    start_container "$serving_id"
    taken_back="What served before ($(printf %.7s "$serving_commit")) has its port back."
  elif [ -n "$edge_id" ]; then
    docker cp "$passing/edge-before/." "$edge_id:/edge" 2>/dev/null
    enter_edge && point_edge "$old_slot"
    taken_back="The edge before serves again."
  else
    remove_own_edge
    taken_back="No release served before, and none serves now."
  fi
}
