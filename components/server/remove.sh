# Esteira on a server: remove. Takes away what this declaration made here, and nothing else. Named volumes are the user's data.

# Notes by which name this declaration knows the server. A server that only got another name is deployed by the new one
# and then removed by the old one in the same run: that must not take down what serves.
remember_server_name() {
  set_name_file
  note "$shared_name_file" "$server"
  note "$name_file" "$server"
}

# Sets name_file, which is beside the release log, because it must outlive a restart of the machine: a run that is cut off
# between the deployment and the removal is ended by the next one. Sets shared_name_file, which until then is the same for
# all users: a server may get another login with its other name. Both are this owner's: another declaration of the same
# name is refused only after it has noted itself.
set_name_file() {
  choose_history
  name_file=$history.server
  shared_name_file=$run_directory/$(history_name).server
  make_history_folder
}

# Phase remove, for a destroy: every container, network and volume that carries this declaration's label.
remove() {
  removed=0
  set_name_file
  known_as=$server
  for noted in "$name_file" "$shared_name_file"; do
    [ ! -r "$noted" ] || read -r known_as <"$noted"
  done
  if [ "$known_as" != "$server" ]; then
    say "server $server is called $known_as now: $name serves on"
    return 0
  fi
  remove_leftovers
  remove_site
  list_all
  for id in $(printf '%s\n' "$containers" | cut -d ' ' -f 2); do
    stop_container "$id"
    forget_container "$id" && removed=$((removed + 1))
  done
  list_all
  [ -z "$containers" ] ||
    fail "Of $name on server $server this could not be removed: $(printf '%s\n' "$containers" | cut -d ' ' -f 4 | tr '\n' ' '). Look at it there (docker rm --force), then try again."
  rm -f "$name_file" "$shared_name_file" "$run_directory/$name.gap"
  for made in $(docker network ls --quiet --filter "label=esteira.owner=$owner"); do
    docker network rm "$made" >/dev/null 2>&1
  done
  docker volume rm "$name-edge" "$name-edge-data" >/dev/null 2>&1
  forget_history
  remove_unused_network esteira
  say "removed $removed containers of $name from server $server"
}
