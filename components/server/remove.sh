# Esteira on a server: remove. Takes away what this declaration made here, and nothing else. Named volumes are the user's data.

# Notes by which name this declaration knows the server. A server that only got another name is deployed by the new one
# and then removed by the old one in the same run: that must not take down what serves.
remember_server_name() {
  set_name_file
  note "$name_file" "$server"
}

# Sets name_file. It may go with a restart of the machine: it is needed from a deployment to the end of that run.
set_name_file() {
  name_file=$run_directory/$daemon.$(printf '%s' "$owner" | tr -c 'A-Za-z0-9.-' _).server
}

# Phase remove, for a destroy: every container, network and volume that carries this declaration's label.
remove() {
  removed=0
  set_name_file
  known_as=$server
  [ -r "$name_file" ] && read -r known_as <"$name_file"
  if [ "$known_as" != "$server" ]; then
    say "server $server is called $known_as now: $name serves on"
    return 0
  fi
  rm -f "$name_file"
  remove_leftovers
  remove_site
  for id in $(docker ps --all --quiet --no-trunc --filter "label=esteira.owner=$owner"); do
    stop_container "$id"
    forget_container "$id" && removed=$((removed + 1))
  done
  for made in $(docker network ls --quiet --filter "label=esteira.owner=$owner"); do
    docker network rm "$made" >/dev/null 2>&1
  done
  docker volume rm "$name-edge" "$name-edge-data" >/dev/null 2>&1
  forget_history
  remove_unused_network esteira
  say "removed $removed containers of $name from server $server"
}
