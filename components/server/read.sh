# Esteira on a server: reading. What runs here, for the preview; changes nothing and waits for no lock.

read_server() {
  echo "esteira-reading 1"
  echo "arch $server_arch"
  docker container inspect --format \
    'serving {{.State.Status}} {{.RestartCount}} {{with .HostConfig.RestartPolicy.Name}}{{.}}{{else}}no{{end}} {{with index .Config.Labels "esteira.owner"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels "esteira.image"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels "esteira.fingerprint"}}{{.}}{{else}}-{{end}} {{with index .Config.Labels "esteira.commit"}}{{.}}{{else}}-{{end}} {{.State.StartedAt}}' \
    "$name" 2>/dev/null
  list_releases | sed 's/^/release /'
  echo end
}
