# Esteira on a server: remove. Takes away what this declaration made here, and nothing else. Named volumes are the user's data.

# Phase remove, for a destroy: every container, network and volume that carries this declaration's label.
remove() {
  removed=0
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
  say "removed $removed containers of $name from server $server"
}
