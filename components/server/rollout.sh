# Esteira on a server: a rollout over several servers, all or nothing. Each server switches on trial; when all of them have
# switched, phase confirm makes it last. A switch that nobody confirms is taken back: by phase undo where the rollout fails,
# else by this server itself at the deadline. It needs nobody for that: the workstation may be gone for good.

# Writes down that this request for this release has come as far as $1: switched, or given-up.
note_down() {
  note "$run_directory/$name.$1" "$request $release"
}

# Whether that was written down for this very request.
is_noted() {
  noted=
  read -r noted 2>/dev/null <"$run_directory/$name.$1"
  [ "$noted" = "$request $release" ]
}

# A phase that was on its way while the rollout was given up must not begin.
refuse_given_up() {
  is_noted given-up || return 0
  # Phase undo has told the release log.
  recorded=yes
  fail "The rollout of commit $short_commit was given up, because another server failed: nothing was done on server $server."
}

# Takes the switch back at its deadline. Begins before the switch does, so that there is no moment without a guard; it is
# this shell's child, without its lock, outlives it, and ends as soon as another run of this application has begun.
guard_switch() {
  (
    trap '' INT TERM
    exec 9<&-
    # It takes the lock whenever that is free: another application's run may hold it for long.
    probe_is_open='' on_trial='' passing='' recorded=yes lock_timeout=
    read_clock
    deadline=$((now + trial * 100))
    while read_clock && [ "$now" -lt "$deadline" ]; do
      sleep 1
      is_last_run || exit 0
    done
    take_lock
    is_last_run || exit 0
    make_passing_files
    finish_stopping
    is_decided && recorded='' && confirm_by_itself || {
      take_back_rollout
      recorded='' && record_deployment 'taken back' "Nobody confirmed it within $trial s. $taken_back"
    }
    leave 0
  ) </dev/null >/dev/null 2>&1 7>&- 8<&- &
}

# Whether it was written down, in the registry, that all servers had switched: then the run was lost after that.
is_decided() {
  pull_quietly "$decision" || return 1
  decided=$(docker image inspect --format '{{index .Config.Labels "esteira.decided"}}' "$decision" 2>/dev/null)
  docker image rm "$decision" >/dev/null 2>&1
  own_mark=$(printf '%s %s %s\n' "$request" "$commit" "$fingerprint" | sha256sum)
  case " $decided " in *" ${own_mark%% *} "*) return 0 ;; *) return 1 ;; esac
}

# Confirms the switch, if it still holds.
confirm_by_itself() {
  phase=confirm
  if [ "$strategy" = recreate ]; then confirm_recreate; else confirm_slots; fi
}

# Tells why phase confirm switches.
tell_again() {
  [ "$phase" != confirm ] || say "the switch on trial did not hold until now: switching again"
}

# Phase undo: the rollout has failed elsewhere. What served before serves, and no phase that is still on its way begins.
undo() {
  look_around
  if [ -n "$declared_id" ] && [ "$declared_id" = "$serving_id" ]; then
    say "nothing to take back: commit $short_commit is settled here"
    return 0
  fi
  note_down given-up
  take_back_rollout
  [ -n "$declared_id" ] || remove_image "$image"
  say "the rollout was given up. $taken_back"
}

# What has the name serves as before, and what has not proven itself goes. Looks at what is there, not at what this run
# remembers: it may be another run's. Sets taken_back, the sentence about it.
take_back_rollout() {
  if [ "$strategy" = recreate ]; then take_back_recreated; else take_back_slots; fi
}

# Sets unproven: the ids of candidates and of what runs without being what has the name.
look_for_unproven() {
  look_around
  unproven=$(
    while read -r id state container_name _; do
      [ -n "$id" ] && [ "$id" != "$serving_id" ] || continue
      case "$state $container_name" in
        *-candidate | running* | paused* | restarting*) echo "$id" ;;
      esac
    done <<END
$releases
END
  )
}

# Removes container $1 if it is a candidate; a kept release stays, stopped.
forget_candidate() {
  case $(docker inspect --format '{{.Name}}' "$1" 2>/dev/null) in
    *-candidate) forget_container "$1" ;;
  esac
}

# The same with strategy blueGreen. What was asked of the candidate is let finish, as with any release that is replaced.
take_back_slots() {
  look_for_unproven
  taking_back=yes
  look_at_edge
  taking_back='' old_slot='' took_over='' created_edge='' replaced_edge=''
  taken_back="Nothing had been switched here."
  if [ -z "$serving_id" ] && enter_edge && slot_holder "$active" && [ -n "$holder_id" ] && finish_confirmation; then
    taken_back="The switch was confirmed already."
    return 0
  fi
  for slot in blue green; do
    [ -z "$serving_id" ] || ! in_slot "$serving_id" "$slot" || old_slot=$slot
  done
  if [ -n "$edge_id" ] && [ -n "$next_id" ] && [ "$next_state" = running ]; then
    created_edge=$next_id replaced_edge=$edge_id
    give_port_back
  elif [ -n "$serving_id" ] && [ "$serving_state" != running ] && [ -n "$unproven" ] && publishes_ports "$serving_id"; then
    took_over=yes created_edge=${next_id:-$edge_id}
    [ "$serving_restart" != no ] || serving_restart=$restart
    give_port_back
  elif [ -n "$serving_id" ]; then
    if [ -n "$old_slot" ] && enter_edge && [ "$active" != "$old_slot" ]; then
      point_edge "$old_slot" || { reopen_edge && point_edge "$old_slot"; } ||
        fail "The edge of $name on server $server does not answer, so commit $short_commit was not taken back. Look at the edge there: docker logs $edge"
      taken_back="The edge points back to commit $(printf %.7s "$serving_commit")."
    fi
  elif [ -n "$unproven" ]; then
    probe_close
    if [ -n "$domain" ]; then remove_site; else remove_own_edge; fi
    edge_id='' active='' taken_back="No release served before, and none serves now."
  fi
  for old_id in $unproven; do
    old_slot=$(other_slot "$active") took_over=''
    drain
    forget_candidate "$old_id"
  done
}

# Whether container $1, which need not run, publishes ports itself.
publishes_ports() {
  [ -n "$(docker inspect --format '{{range $port, $at := .HostConfig.PortBindings}}{{$port}} {{end}}' "$1" 2>/dev/null)" ]
}

# The same with strategy recreate.
take_back_recreated() {
  look_for_unproven
  look_at_edge
  taken_back="Nothing had been switched here." candidate_id='' candidate_name=''
  for candidate_id in $unproven; do
    stop_container "$candidate_id"
    forget_candidate "$candidate_id"
  done
  if [ -n "$serving_id" ] && [ "$serving_state" != running ]; then
    read_clock && gap_start=$now
    prepare_gate "$probe_network"
    last_answer='none yet' candidate_id=''
    take_back
  elif [ -n "$serving_id" ] && is_gap_noted; then
    # The daemon was started anew meanwhile, which woke it.
    docker update --restart "$gap_policy" "$serving_id" >/dev/null
    rm -f "$run_directory/$name.gap"
    taken_back="The release before ($(printf %.7s "$serving_commit")) serves again."
  elif [ -n "$unproven" ] && [ -z "$serving_id" ]; then
    taken_back="No release served before, and none serves now."
  fi
}
