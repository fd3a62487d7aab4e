# Esteira on a server: the image, by digest, with a registry login that lasts no longer than the pull.

# Sets advice: what to do about what docker said in $1.
advise() {
  look_at_architecture
  case $1 in
    *"no space left on device"*)
      advice="The disk of server $server is full. Free room there (docker system df shows what Docker uses), then run it again." ;;
    *"no matching manifest"* | *"does not match the specified platform"*)
      advice="The image was not built for this server ($server_arch). Set image.platform to linux/$server_arch and build it again." ;;
    *"network "*" not found"*)
      advice="That network is not on server $server. Make it there (docker network create), or take it from container.networks." ;;
    *"manifest unknown"* | *"not found"*)
      advice="The registry no longer has this image. Check the registry's clean-up rules, or build the commit again." ;;
    *[Uu]nauthorized* | *"denied"* | *"no basic auth credentials"* | *"authentication required"*)
      advice="The registry refused the credentials that server $server pulls with. Check pullUser and pullPassword (or registryUser and registryPassword)." ;;
    *"connection refused"* | *"no such host"* | *"imeout"* | *"unreachable"* | *"no route to host"* | *"connection reset"* | *"EOF"*)
      advice="The registry $registry cannot be reached from server $server. Check its address, that it runs, and the server's network." ;;
    *"x509"* | *"HTTP response to HTTPS client"* | *"certificate"*)
      advice="Server $server and registry $registry do not agree on TLS. Put the registry's CA certificate in /etc/docker/certs.d/$registry/ca.crt on the server, or list it there as an insecure registry." ;;
    *"port is already allocated"* | *"address already in use"*)
      advice="Something else on server $server holds a port that this application publishes. Stop it, or change container.ports." ;;
    *"manifest for"*) advice="The registry does not have this image." ;;
    *) advice="That is Docker's own message from server $server." ;;
  esac
}

# Ends the run before anything changed: $1 says what failed, $2 is docker's message.
refuse() {
  advise "$2"
  abandon
  fail "$1: $2. $advice What served before serves on."
}

# Makes sure that the declared image is here, under its digest and for this server's processor.
fetch_image() {
  read_clock && fetch_start=$now
  look_at_architecture
  if look_at_image; then
    say "image $short_digest is on the server already"
  else
    pull "$image"
    measure "$fetch_start"
    look_at_image
    say "pulled $pulled_layers layers, $((image_bytes / 1000000)) MB unpacked, $took"
    pulled_now=yes
  fi
  if [ "$image_arch" != "$server_arch" ]; then
    refuse "The image cannot run on server $server" "it is for $image_arch and does not match the specified platform"
  fi
}

# Pulls $1 and sets pulled_layers.
pull() {
  pull_quietly "$1" || refuse "$failed" "$(last_line "$message")"
  pulled_layers=$(printf '%s\n' "$message" | grep -c 'Pull complete')
}

# Pulls $1; sets message and failed as log_in_and_pull does. The credential exists as a file in memory only while the pull
# runs.
pull_quietly() {
  config=$passing/docker
  mkdir "$config"
  if ! log_in_and_pull "$1" && is_late "$(last_line "$message")"; then
    say "the registry has not answered in time: trying once more"
    log_in_and_pull "$1"
  fi
  rm -rf "$config"
  [ -z "$failed" ]
}

# Logs in where there is a password, and pulls $1. Sets message to what docker said, and failed to what could not be done.
log_in_and_pull() {
  failed="Server $server cannot log in to registry $registry"
  if [ -n "$registry_password" ]; then
    message=$(printf '%s' "$registry_password" |
      docker --config "$config" login --username "$registry_user" --password-stdin "$registry" 2>&1) || return 1
  fi
  failed="Server $server cannot pull $1"
  message=$(docker --config "$config" pull "$1" 2>&1) || return 1
  failed=''
}

# Says whether docker's message $1 tells of an answer that came too late: that alone may be another at the next try.
is_late() {
  case $1 in
    *"Client.Timeout"* | *"i/o timeout"* | *"TLS handshake timeout"* | *"context deadline exceeded"*) return 0 ;;
  esac
  return 1
}

# Sets image_arch and image_bytes (unpacked). Fails where the image is not here.
look_at_image() {
  image_arch='' image_bytes=0
  # shellcheck disable=SC2046 # two words
  set -- $(docker image inspect --format '{{.Architecture}} {{.Size}}' "$image" 2>/dev/null)
  [ $# = 2 ] && image_arch=$1 image_bytes=$2
}

# Prints the last line of $1 that says something.
last_line() {
  printf '%s\n' "$1" | grep -v '^[[:space:]]*$' | tail -n 1
}

# Removes image $1 (repo@digest) and the tag that the build left where build host and server are one machine; docker
# itself refuses what any container, ours or not, still uses.
remove_image() {
  docker image rm "$1" >/dev/null 2>&1
  [ -n "$2" ] && docker image rm "${1%@*}:$2" >/dev/null 2>&1
  return 0
}
