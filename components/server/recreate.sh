# Esteira on a server: strategy recreate. Everything that can fail without a gap is done first; then stop old, start new.

# With several servers, phase candidate does what can fail without a gap, switch does the rest on trial, and confirm settles.

# Phases deploy and switch: the declared release runs, or the one before does again.
recreate() {
  look_around
  look_at_edge
  if [ -n "$declared_id" ] && [ "$declared_id" = "$serving_id" ] && [ "$declared_state" = running ] && [ -z "$edge_id" ]; then
    unchanged=yes
    settle_policy
    stop_others
    say "unchanged: $name runs commit $short_commit"
    prune_releases
    return 0
  fi
  tell_again
  if [ -n "$declared_id" ]; then
    say "release $short_commit is still on the server: nothing to pull"
    candidate_id=$declared_id candidate_name=$declared_name
  else
    fetch_image
    [ "$phase" != deploy ] || run_pre_deploy "$@"
    candidate_name=$release-candidate
    create_container "$candidate_name" release '' "$@" ||
      refuse "The container of the new release cannot be created" "$(docker_said)"
    candidate_id=$created_id
    made_now=yes
  fi
  prepare_gate "$probe_network"
  still_wanted
  replace
}

# Phase candidate: the image is here, and the preDeploy command has run.
prepare_recreate() {
  look_for_unproven
  if [ -n "$serving_id" ] && [ "$serving_state" != running ] && is_in_gap; then
    # Another rollout was cut off here, while it was on trial or in its gap.
    take_back_recreated
    look_around
  fi
  look_at_edge
  if [ -n "$declared_id" ]; then
    say "release $short_commit is on the server: nothing to pull"
    return 0
  fi
  fetch_image
  run_pre_deploy "$@"
}

# Whether the serving container is stopped because a run was cut off, not because somebody stopped it.
is_in_gap() {
  [ -n "$unproven" ] || [ "$serving_restart" = no ] || is_gap_noted
}

# Whether the serving container was stopped for a gap that no run has ended; sets gap_policy, its restart policy before.
is_gap_noted() {
  gap_id=
  read -r gap_id gap_policy 2>/dev/null <"$run_directory/$name.gap"
  [ "$gap_id" = "$serving_id" ]
}

# Phase confirm: all servers run the release. Fails where this one does so no more: then it is to switch again, to stay.
confirm_recreate() {
  look_around
  [ -n "$declared_id" ] && [ "$declared_id" != "$serving_id" ] && [ "$declared_state" = running ] && is_noted switched || return 1
  look_at_edge
  candidate_id=$declared_id
  give_names
  say "confirmed: $name runs commit $short_commit"
  prune_releases
}

# The gap. From here on the run is finished even if nobody listens any more.
replace() {
  read_clock && gap_start=$now
  [ -z "$trial" ] || guard_switch
  stop_others
  if [ -n "$serving_id" ] && [ "$serving_id" != "$candidate_id" ]; then
    is_gap_noted || note "$run_directory/$name.gap" "$serving_id $serving_restart"
    stop_container "$serving_id"
    measure "$gap_start"
    say "stopped commit $(printf %.7s "$serving_commit"), $took"
  fi
  if [ -n "$edge_id" ]; then
    # The strategy was blueGreen before: the edge holds the port.
    stop_container "$edge_id" 2
  fi
  choose_what_wakes
  if ! docker start "$candidate_id" >/dev/null 2>"$passing/error"; then
    why=$(docker_said)
    advise "$why"
    verdict="it did not start: $why"
    last_answer=none
    take_back
    mark_run
    fail "Release $short_commit did not start on server $server: $why. $advice $taken_back"
  fi
  if ! pass_gate "$candidate_id"; then
    show_failure "$candidate_id" "the health gate of release $short_commit"
    why=$verdict
    take_back
    mark_run
    fail "Release $short_commit is not healthy on server $server: $why; last answer: $failed_answer. $taken_back"
  fi
  measure "$gap_start"
  gap=$took
  [ -n "$trial" ] || give_names
  say "healthy after $healthy_after: $last_answer; not served for $gap"
  if [ -n "$trial" ]; then
    try_recreated
  else
    prune_releases
  fi
}

# A machine that goes down before the candidate has its name wakes what served before, though that is stopped. A daemon that
# lets containers live while it is started anew would have both run then.
choose_what_wakes() {
  # shellcheck disable=SC2086 # one word or none
  [ "$live_restore" = true ] || [ -z "$serving_id" ] || [ "$serving_id" = "$candidate_id" ] ||
    docker update --restart always "$serving_id" $edge_id >/dev/null
}

# On trial: the release before keeps its name.
try_recreated() {
  # There it is the candidate that wakes, now that it has been healthy.
  [ "$live_restore" != true ] || docker update --restart "$restart" "$candidate_id" >/dev/null
  watch_release
  note_down switched
  say "on trial: commit $short_commit serves until all servers have switched, at most $trial s, or is taken back"
}

# The proven release gets the serving name and its restart policy, the one before its own name.
give_names() {
  # Both at once never wake, and as shortly as can be neither does.
  [ -z "$serving_id" ] || [ "$serving_id" = "$candidate_id" ] || forbid_restart "$serving_id"
  docker update --restart "$restart" "$candidate_id" >/dev/null
  if [ "$serving_id" != "$candidate_id" ]; then
    [ -z "$serving_id" ] || give_own_name "$serving_id"
    give_serving_name "$candidate_id"
  fi
  [ -z "$edge_id" ] || remove_own_edge
  remove_site
  tell_adopted
}

# The declared release serves already, perhaps with another restart policy.
settle_policy() {
  docker update --restart "$restart" "$serving_id" >/dev/null
}

# The new release has failed: what served before serves again. Sets taken_back, the sentence about it.
take_back() {
  failed_answer=$last_answer
  if [ "$candidate_id" = "$serving_id" ]; then
    taken_back="It is the release that was serving already; no other was there to take its place."
    return 0
  fi
  [ -z "$candidate_id" ] || stop_container "$candidate_id"
  case $candidate_name in
    *-candidate) forget_container "$candidate_id" ;;
  esac
  if [ -z "$serving_id" ]; then
    taken_back="No release served before, and none serves now."
    return 0
  fi
  if [ -n "$edge_id" ]; then
    docker update --restart always "$edge_id" >/dev/null
    docker start "$edge_id" >/dev/null
    probe_close
    edge_state=running
    enter_edge && probe_address=$name-$active
  fi
  serving_policy=$serving_restart
  ! is_gap_noted || serving_policy=$gap_policy
  [ "$serving_policy" = no ] && serving_policy=$restart
  docker update --restart "$serving_policy" "$serving_id" >/dev/null
  if ! docker start "$serving_id" >/dev/null 2>"$passing/error"; then
    taken_back="The release before ($(printf %.7s "$serving_commit")) could not be started again either: $(docker_said)."
    return 0
  fi
  rm -f "$run_directory/$name.gap"
  if pass_gate "$serving_id"; then
    measure "$gap_start"
    taken_back="The release before ($(printf %.7s "$serving_commit")) serves again; not served for $took."
  else
    taken_back="The release before ($(printf %.7s "$serving_commit")) runs again but is not healthy either: $verdict."
  fi
}
