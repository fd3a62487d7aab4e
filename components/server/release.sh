# Esteira on a server: releases as containers. A release is an image with all its settings, as one container.
#
# A container's name tells its state, because a rename is the one change that Docker makes at once and keeps:
#   parasite                                 serves
#   parasite-3f2a9c41d0b7-…-candidate        has not yet proven itself
#   parasite-3f2a9c41d0b7-…                  has served, is kept stopped and can serve again

# Prints this declaration's containers, the last stopped first: "role id state name image fingerprint commit tag".
list_containers() {
  docker ps --all --no-trunc --filter "label=esteira.owner=$owner" --format \
    '{{.Label "esteira.role"}} {{.ID}} {{.State}} {{.Names}} {{.Label "esteira.image"}} {{.Label "esteira.fingerprint"}} {{.Label "esteira.commit"}} {{.Label "esteira.tag"}}'
}

# Prints its release containers, without the role.
list_releases() {
  list_containers | sed -n 's/^release //p'
}

# Sets declared_id, declared_state, declared_name (the container of the declared release, if there is one), serving_id,
# serving_state, serving_release (the container that has the serving name, whoever made it) and slots (lines "id state
# aliases" of the release containers).
look_around() {
  declared_id='' ids=''
  [ -n "$just_listed" ] || { list_all && releases=$(printf '%s\n' "$containers" | sed -n 's/^release //p'); }
  just_listed=
  while read -r id state container_name its_image its_fingerprint _; do
    ids="$ids $id"
    [ "$id" != "$renewed_id" ] || continue
    if [ "$its_image" = "$image" ] && [ "$its_fingerprint" = "$fingerprint" ]; then
      declared_id=$id declared_state=$state declared_name=$container_name
    fi
  done <<END
$releases
END
  # shellcheck disable=SC2086 # ids are words
  look "$name" "$edge" "$edge-next" $ids
  just_looked=yes serving_id='' serving_state='' slots='' found_project=- found_owner=-
  while read -r container_name id state its_owner its_release its_commit its_policy project _ aliases; do
    if [ "$container_name" = "/$name" ]; then
      serving_id=$id serving_state=$state serving_release=$its_release serving_commit=$its_commit
      serving_restart=$its_policy found_project=$project found_owner=$its_owner
    fi
    case $slots in *"$id"*) continue ;; esac
    case " $ids " in *" $id "*) slots="$slots$id $state $aliases
" ;; esac
  done <<END
$seen
END
  [ -n "$serving_id" ] || return 0
  if [ "$found_project" != - ]; then
    fail "The container $name on server $server belongs to the docker compose project $found_project, which would start it again. Stop it there first (docker compose down), or set another container.name."
  fi
  case $found_owner in
    "$owner") ;;
    -) serving_release=$name-before-$(printf %.12s "$serving_id") serving_commit=unknown ;;
    *) fail "The container $name on server $server belongs to another declaration ($found_owner). Set another container.name, or destroy that one first." ;;
  esac
}

# Sets seen: a line about each container of $*, as far as there is one. What Docker did not answer is not taken for a
# container that is not there: what serves would be stopped as somebody else's.
look() {
  look_once "$@" && return 0
  await_daemon
  look_once "$@" ||
    fail "Docker on server $server does not tell what runs there ($(docker_said)). Look at its daemon (docker info), then try again."
}

# Asked once for all of them, because asking costs more than the answer.
look_once() {
  seen=$(docker container inspect --format \
    "{{.Name}} {{.Id}} {{.State.Status}} {{with index .Config.Labels \"esteira.owner\"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels \"esteira.release\"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels \"esteira.commit\"}}{{.}}{{else}}-{{end}} {{with .HostConfig.RestartPolicy.Name}}{{.}}{{else}}no{{end}} {{with index .Config.Labels \"com.docker.compose.project\"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels \"esteira.edge\"}}{{.}}{{else}}-{{end}} {{with index .NetworkSettings.Networks \"$network\"}}{{range .Aliases}}{{.}} {{end}}{{end}}" \
    "$@" 2>"$passing/error") && return 0
  [ $? = 1 ] && grep -q 'No such container: ' "$passing/error" && ! grep -v -q -e 'No such container: ' -e '^WARNING' -e '^ *$' "$passing/error"
}

# Sets containers, to what list_containers prints.
list_all() {
  containers=$(list_containers 2>"$passing/error") || { await_daemon && containers=$(list_containers 2>"$passing/error"); } ||
    fail "Docker on server $server does not tell which containers there are ($(docker_said)). Look at its daemon (docker info), then try again."
}

# Removes what a run that was cut off left half made: candidates that were created but never started, probes and preDeploy
# containers. A candidate that runs is complete and may still prove itself. Sets releases, to save look_around the asking.
remove_leftovers() {
  list_all
  remove_listed_leftovers
  releases=$(printf '%s\n' "$containers" | sed -n '/^release [^ ]* created /d; s/^release //p') just_listed=yes
}

# Removes those that are among containers.
remove_listed_leftovers() {
  for leftover in $(printf '%s\n' "$containers" |
    sed -n 's/^probe \([^ ]*\) .*/\1/p; s/^preDeploy \([^ ]*\) .*/\1/p; s/^release \([^ ]*\) created .*/\1/p'); do
    docker rm --force --volumes "$leftover" >/dev/null 2>&1
  done
}

# Creates a container with the declared settings: $1 is its name, $2 its role, "yes" in $3 leaves published ports out;
# after them the docker create options, "--" and the command. Sets created_id.
create_container() {
  container_name=$1 role=$2 unpublished=$3
  shift 3
  count=$# image_placed=
  while [ "$count" -gt 0 ]; do
    count=$((count - 1))
    case $image_placed$1 in
      --) set -- "$@" "$image" && image_placed=yes ;;
      --publish=*) [ -n "$unpublished" ] || set -- "$@" "$1" ;;
      *) set -- "$@" "$1" ;;
    esac
    shift
  done
  # shellcheck disable=SC2086 # secret_names and slot_options are words
  set -- --name "$container_name" --restart no $secret_names $slot_options \
    --label "esteira.owner=$owner" --label "esteira.role=$role" --label "esteira.release=$release" \
    --label "esteira.image=$image" --label "esteira.fingerprint=$fingerprint" --label "esteira.commit=$commit" \
    --label "esteira.tag=$tag" "$@"
  # The secret values go from this shell's environment: as an argument everybody on the server could read them, and an
  # env file would lose line breaks. Nothing of ours is looked at behind the export: a secret may have any name.
  { created_id=$(export_secrets && command docker create "$@" 9<&-); } 2>"$passing/error" || return 1
  for joined in $more_networks; do
    docker network connect "$joined" "$created_id" 2>"$passing/error" || return 1
  done
  copy_secret_files "$created_id" 2>"$passing/error"
}

# Secret files are copied in between create and start: a bind mount that is gone later would kill a kept release.
copy_secret_file_archive() {
  printf '%s' "$3" | base64 -d | docker cp - "$1:$2"
}

# Runs the preDeploy command with the new image and its settings, and shows what it says.
run_pre_deploy() {
  [ -n "$pre_deploy" ] || return 0
  read_clock && step_start=$now
  say "preDeploy: $pre_deploy"
  options_without_command "$@"
  eval "set -- $kept_options -- $pre_deploy"
  create_container "$release-preDeploy" preDeploy yes "$@" || refuse "preDeploy cannot be run" "$(docker_said)"
  docker start --attach "$created_id" 2>&1 | show_lines
  # What is shown ends with the client, too; the command itself must not be killed half done.
  docker wait "$created_id" >/dev/null 2>&1 || { await_daemon && docker wait "$created_id" >/dev/null 2>&1; }
  # One that Docker could not start, for want of an answer, has the code 0 as well.
  exit_code=$(ask_about "$created_id" '{{.State.Status}} {{.State.ExitCode}}')
  docker rm --force --volumes "$created_id" >/dev/null
  measure "$step_start"
  if [ "$exit_code" != "exited 0" ]; then
    case $exit_code in "created 0" | '') exit_code=unknown ;; esac
    abandon
    fail "preDeploy failed with exit code ${exit_code#* } after $took; nothing was changed, what served before serves on."
  fi
  say "preDeploy done, $took"
}

# Sets kept_options: the options in front of the first "--", quoted for eval. A declared entrypoint is the application's program
# (and half of it, as its other words stand behind the "--"): with an empty one the command is run as it stands.
options_without_command() {
  kept_options=
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
      --entrypoint=*) kept_options="$kept_options --entrypoint=" ;;
      *) kept_options="$kept_options '$(printf '%s' "$1" | sed "s/'/'\\\\''/g")'" ;;
    esac
    shift
  done
}

# Starts container $1, whatever state it is in.
start_container() {
  # A paused one is not started but unpaused, and is the exception: nothing is asked before.
  docker start "$1" >/dev/null 2>"$passing/error" || docker unpause "$1" >/dev/null 2>&1
}

# Stops container $1 as docker stop does, after $2 seconds if given, without waiting in docker: a docker stop that outlives
# this shell would later kill what the next run has started.
stop_container() {
  forbid_restart "$1"
  end_container "$@"
}

# Takes container $1's restart policy away, if need be after the daemon has come back.
forbid_restart() {
  docker update --restart no "$1" >/dev/null 2>&1 || { await_daemon && docker update --restart no "$1" >/dev/null 2>&1; }
}

# Prints container $1 by docker's format $2, if need be after the daemon has come back: that it does not answer does not mean
# that the container has ended.
ask_about() {
  docker inspect --format "$2" "$1" 2>"$passing/error" || {
    ! grep -q 'No such' "$passing/error" && await_daemon && docker inspect --format "$2" "$1" 2>/dev/null
  }
}

# Sends container $1 its stop signal and waits, at most $2 seconds (else its own stop timeout), then kills it. A release is
# noted down meanwhile: should this run be cut off, it still looks like one that runs, and ends when it has finished its work.
end_container() {
  stop_timeout=$2
  # shellcheck disable=SC2046 # a fixed number of words
  set -- "$1" $(ask_about "$1" '{{.State.Running}} {{if .Config.StopSignal}}{{.Config.StopSignal}}{{else}}SIGTERM{{end}} {{if .Config.StopTimeout}}{{.Config.StopTimeout}}{{else}}10{{end}}')
  [ "$2" = true ] || return 0
  [ -n "$stop_timeout" ] || note "$run_directory/$name.stopping" "$1"
  read_clock && stop_start=$now
  docker kill --signal "$3" "$1" >/dev/null 2>&1
  while [ "$(ask_about "$1" '{{.State.Running}}')" = true ]; do
    read_clock
    if [ $((now - stop_start)) -ge $((${stop_timeout:-$4} * 100)) ]; then
      docker kill "$1" >/dev/null 2>&1
      [ -n "$stop_timeout" ] || warn "it did not stop within $4 s of $3 and was killed"
      break
    fi
    # Asking docker costs more than the wait: sleep until the process is gone, where it can be seen.
    sleep 0.02
  done
  [ -n "$stop_timeout" ] || rm -f "$run_directory/$name.stopping"
}

# Ends what a run that was cut off has told to stop, before anything is looked at: it counts as stopped.
finish_stopping() {
  stopping=
  read -r stopping 2>/dev/null <"$run_directory/$name.stopping"
  case $stopping in '' | *[!0-9a-f]*) return 0 ;; esac
  case $(docker inspect --format '{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}' "$stopping" 2>/dev/null) in
    "true no" | "true ")
      end_container "$stopping"
      say "stopped what a run that was cut off had told to stop"
      ;;
    *) rm -f "$run_directory/$name.stopping" ;;
  esac
}

# Nothing but the serving and the declared release may run, in the free slot or with the port: candidates of other runs go, a
# release whose drain was cut off stops.
stop_others() {
  while read -r id state container_name _; do
    [ -n "$id" ] && [ "$id" != "$serving_id" ] && [ "$id" != "$declared_id" ] || continue
    case $container_name in
      *-candidate) forget_container "$id" && say "removed a candidate that an earlier run left" ;;
      *) [ "$state" = exited ] || [ "$state" = created ] || stop_container "$id" ;;
    esac
  done <<END
$releases
END
}

# The end of a deployment: keeps the last keep_releases releases, as stopped containers, and removes older ones with their
# images.
prune_releases() {
  kept=0 pruned=0
  rm -f "$run_directory/$name.gap"
  # What was found broken is nothing to go back to. It serves on where no other took its place.
  [ -z "$renewed_id" ] || [ "$renewed_id" = "$(docker inspect --format '{{.Id}}' "$name" 2>/dev/null)" ] || forget_container "$renewed_id"
  stopped=$(list_releases | while read -r id state container_name _; do
    [ "$container_name" = "$name" ] || [ "$state" = running ] || echo "$id"
  done)
  # Which of them stopped first is asked only where there are too many.
  [ "$(printf '%s\n' "$stopped" | grep -c .)" -le "$keep_releases" ] ||
    stopped=$(printf '%s\n' "$stopped" | xargs docker inspect --format '{{.State.FinishedAt}} {{.Id}}' 2>/dev/null 7>&- 8<&- 9<&- | sort -r | cut -d ' ' -f 2)
  for id in $stopped; do
    kept=$((kept + 1))
    [ "$kept" -gt "$keep_releases" ] || continue
    kept=$keep_releases
    forget_container "$id" && pruned=$((pruned + 1))
  done
  say "kept $kept earlier releases, pruned $pruned"
}

# Removes container $1 with its anonymous volumes, and its image where nothing else uses it.
forget_container() {
  its_image=$(docker inspect --format '{{index .Config.Labels "esteira.image"}} {{index .Config.Labels "esteira.tag"}}' "$1" 2>/dev/null)
  docker rm --force --volumes "$1" >/dev/null 2>&1 || return 1
  # shellcheck disable=SC2086 # two words: repo@digest and tag
  remove_image $its_image
}

# Before anything that serves is touched: takes away what this run made.
abandon() {
  if [ -n "$candidate_id" ] && [ "$candidate_id" != "$serving_id" ]; then
    stop_container "$candidate_id"
    case $candidate_name in
      *-candidate) forget_container "$candidate_id" ;;
    esac
  fi
  [ -z "$pulled_now" ] || remove_image "$image"
  # Not for sure: what this run fails of is to be told, whatever Docker says now.
  ! containers=$(list_containers 2>/dev/null) || remove_listed_leftovers
  [ -z "$created_edge" ] || [ "$created_edge" = "$edge_id" ] || docker rm --force --volumes "$created_edge" >/dev/null 2>&1
  # What an edge that this run does not know of is made of stays: Docker removes nothing that a container uses.
  [ -n "$edge_id" ] || { remove_edge_volumes; remove_unused_network "$network"; }
}

# Gives container $1, which served before, the name of its release: tried twice, since Docker may have failed for once, and
# then a longer one, since another container may have it.
give_own_name() {
  for own_name in "$serving_release" "$serving_release" "$serving_release-$(printf %.6s "$1")"; do
    docker rename "$1" "$own_name" 2>/dev/null && return 0
    is_named "$1" "$own_name" && return 0
  done
  return 1
}

# Gives container $1 the name of what serves.
give_serving_name() {
  docker rename "$1" "$name" 2>/dev/null || is_named "$1" "$name" || { await_daemon && docker rename "$1" "$name"; }
}

# Whether container $1 has the name $2: Docker does not rename to the name that there is.
is_named() {
  [ "$(docker inspect --format '{{.Name}}' "$1" 2>/dev/null)" = "/$2" ]
}

# A container that Esteira did not make is nobody's to throw away.
tell_adopted() {
  case $serving_release in
    "$name-before-"*) say "the container that ran before is kept, stopped, as $serving_release; to remove it: docker rm $serving_release" ;;
  esac
}
