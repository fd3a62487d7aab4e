# Esteira on a server: the release log. One JSON line a deployment, the last 200 of this application; no secret is in it.
#
# The phase that ends a deployment writes its line: the last one, or the one that failed. Until then a mark beside the log
# says that a deployment has begun, so that a run which was killed, and could say nothing, is told of by the next one.
# Whatever goes wrong here (a full disk, a folder that may not be written) fails no deployment.

# Sets history_folder and history, the log's path without its ending: root's in /var/lib, else in the user's own home.
choose_history() {
  history_folder=/var/lib/esteira
  [ "$(id -u)" = 0 ] || history_folder=$HOME/.esteira
  history=$history_folder/$(history_name)
}

# Makes the log's folder where it is not there; fails where it cannot.
make_history_folder() {
  [ -d "$history_folder" ] || (umask 022 && mkdir -p "$history_folder") 2>/dev/null
}

# Prints the log's name. No part of an owner has a plus, so no two owners have one name.
history_name() {
  printf '%s' "$owner" | tr / + | tr -c 'A-Za-z0-9._+-' _
}

# Prints $1 as a JSON string, for sure: what is neither plain text nor a blank becomes one, or a question mark.
json_string() {
  printf '"%s"' "$(printf '%s' "$1" | LC_ALL=C tr '\000-\037\177' ' ' | LC_ALL=C tr '\200-\377' '?' | sed 's/[\\"]/\\&/g')"
}

# Sets deployment_time, deployment_start (of read_clock), deployment (what it is, the same in all its phases) and
# deployment_login (who is logged in here, and from where), as members of a JSON object. The request says who and why.
describe_deployment() {
  choose_history
  read_clock && deployment_start=$now
  deployment_time=$(date -u '+%Y-%m-%dT%H:%M:%SZ')
  asker=${request#*, }
  case $asker in
    *", found "*) found=${asker#*, found } && found=${found%% \[renew *} ;;
    *) found= ;;
  esac
  deployment="\"stack\":$(json_string "$owner"),\"server\":$(json_string "$server"),\"commit\":$(json_string "$commit"),\"tag\":$(json_string "$tag"),\"digest\":$(json_string "${image##*@}"),\"who\":$(json_string "${asker%%, found *}"),\"asked\":$(json_string "${request%%, *}"),\"found\":$(json_string "$found")"
  deployment_login="\"user\":$(json_string "${SUDO_USER:-$(id -un)}"),\"from\":$(json_string "$client")"
}

# Goes on with the deployment that an earlier phase has begun, or begins one. Needs the lock.
begin_deployment() {
  describe_deployment
  make_history_folder
  if { read -r begun_start && read -r begun_time && read -r begun && read -r begun_login; } 2>/dev/null <"$history.begun"; then
    if [ "$begun" = "$deployment" ]; then
      marked=yes
      deployment_time=$begun_time
      # After a restart of the machine its clock began anew.
      [ "$begun_start" -gt "$deployment_start" ] 2>/dev/null || deployment_start=$begun_start
    elif [ "$phase" != undo ]; then
      write_history "$begun_time" "$begun,$begun_login" null 'cut off' 'It was never ended on this server: its run was cut off, or failed on another one.'
    fi
  fi
  # What has ended already is not taken back.
  [ "$phase" != undo ] || return 0
  marked=yes
  (umask 022 && printf '%s\n' "$deployment_start" "$deployment_time" "$deployment" "$deployment_login" >"$history.begun") 2>/dev/null
}

# Called at the end of a phase with its exit status: writes the line where the deployment has ended with it.
end_deployment() {
  case $phase in candidate | switch | deploy | confirm | undo) ;; *) return 0 ;; esac
  if [ "$phase" = undo ]; then
    [ -z "$marked" ] || record_deployment 'taken back' "The rollout failed on another server. ${taken_back:-$cause}"
  elif [ "$1" != 0 ]; then
    record_deployment failed "$cause"
  elif [ "$phase" = candidate ] || { [ "$phase" = switch ] && [ -n "$confirm_timeout" ]; }; then
    # Another phase ends it: with several servers a switch is confirmed.
    :
  elif [ -z "$unchanged" ]; then
    record_deployment deployed ''
  elif [ -n "$found" ] && [ "$found" != 'it unread' ]; then
    record_deployment repaired ''
  else
    record_deployment unchanged ''
  fi
}

# Writes this deployment's line, once: $1 is the result, $2 its cause.
record_deployment() {
  [ -z "$recorded" ] || return 0
  recorded=yes
  [ -n "$deployment" ] || describe_deployment
  measure "$deployment_start"
  write_history "$deployment_time" "$deployment,$deployment_login" "${took% s}" "$1" "$(printf %.300s "$2")"
  [ -z "$marked" ] || rm -f "$history.begun"
}

# Adds a line: $1 is the time, $2 what it is about, $3 how many seconds it took, $4 the result, $5 its cause.
write_history() {
  line="{\"time\":$(json_string "$1"),$2,\"seconds\":$3,\"result\":$(json_string "$4"),\"cause\":$(json_string "$5")}"
  make_history_folder
  (
    # A deployment that waits in vain for the server's lock writes its line beside another one.
    flock -w 5 6
    umask 022
    if : >"$history.new" &&
      { [ ! -e "$history.jsonl" ] || tail -n 199 "$history.jsonl" >>"$history.new"; } &&
      printf '%s\n' "$line" >>"$history.new"; then
      mv -f "$history.new" "$history.jsonl"
    else
      rm -f "$history.new"
    fi
  ) 2>/dev/null 6>>"$history.lock"
}

# Prints the log's last $1 lines, this user's own and root's, as "history {…}".
show_history() {
  choose_history
  {
    tail -n "$1" "$history.jsonl"
    [ "$history_folder" = /var/lib/esteira ] || tail -n "$1" "/var/lib/esteira/$(history_name)".jsonl
  } 2>/dev/null | sed 's/^/history /'
}

# The application is gone, and its log with it.
forget_history() {
  choose_history
  rm -f "$history.jsonl" "$history.begun" "$history.new" "$history.lock" "$history.server"
  rmdir "$history_folder" 2>/dev/null
}
