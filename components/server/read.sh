# Esteira on a server: reading. What runs here, for the preview; changes nothing and waits for no lock.

# Prints what runs here, one thing a line, from a first line to an end line, so that half of it is no answer.
read_server() {
  echo "esteira-reading 1"
  look_at_architecture
  echo "arch $server_arch"
  docker container inspect --format \
    'serving {{.State.Status}} {{.RestartCount}} {{with .HostConfig.RestartPolicy.Name}}{{.}}{{else}}no{{end}} {{with index .Config.Labels "esteira.owner"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels "esteira.image"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels "esteira.fingerprint"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels "esteira.commit"}}{{.}}{{else}}-{{end}} {{.State.StartedAt}}' \
    "$name" 2>/dev/null
  list_releases | sed 's/^/release /'
  docker container inspect --format \
    'edge {{.State.Status}} {{with index .Config.Labels "esteira.edge"}}{{.}}{{else}}-{{end}}' "$edge" 2>/dev/null
  docker exec "$edge" sh -c "
    if [ ! -e '/edge/$name/site' ]; then :
    elif [ -e '/dev/shm/$name-blue' ]; then echo slot $name-blue
    elif [ -e '/dev/shm/$name-green' ] || [ -e '/edge/$name/green' ]; then echo slot $name-green
    else echo slot $name-blue; fi" 2>/dev/null
  docker ps --no-trunc --filter "label=esteira.owner=$owner" --filter label=esteira.role=release --quiet |
    xargs -r docker inspect --format 'running {{.Name}} {{range .NetworkSettings.Networks}}{{range .Aliases}}{{.}} {{end}}{{end}}' 2>/dev/null
  echo end
}
