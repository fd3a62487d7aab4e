# Esteira on a server: the edge. A stock Caddy that owns the published ports and knows two slots, blue and green.
#
# An application with plain ports has an edge of its own, NAME-edge. Applications with a domain share one, esteira-edge, on
# 80 and 443; in its folder /edge each has a site, which is the only thing that a reload adds or takes away.
#
# A request goes to the green slot while the file /edge/NAME/green exists, else to the blue one. Switching is making or
# removing that one file: no configuration changes during a release, because a reload cuts WebSockets and drops requests.
# It dials the network aliases NAME-blue and NAME-green, which survive renames, never container names.
#
# A switch on trial is a file of the same kind in the edge's own memory: /dev/shm/NAME-green or NAME-blue, which go before
# /edge/NAME/green. When edge, daemon or machine is started anew it is gone, and what served before the trial serves.

# Sets edge_id, edge_state, edge_mark and active (the slot that gets the requests), empty where there is no edge. After
# look_around it costs nothing.
look_at_edge() {
  edge_id='' active='' next_id=''
  [ -n "$just_looked" ] || look "$edge" "$edge-next"
  just_looked=
  while read -r container_name id state its_owner _ _ policy _ mark _; do
    case $container_name in
      "/$edge") edge_id=$id edge_state=$state edge_mark=$mark edge_policy=$policy ;;
      "/$edge-next") next_id=$id next_state=$state next_mark=$mark ;;
      *) continue ;;
    esac
    [ "$its_owner" = "$edge_owner" ] && [ "$mark" != - ] ||
      fail "The container ${container_name#/} on server $server has the name of the edge of $name, and Esteira did not make it as that. Rename it there, or set another container.name."
  done <<END
$seen
END
  [ -z "$next_id" ] || [ -n "$taking_back" ] || { probe_close && settle_edges; }
}

# A run was cut off while it put an edge in place. If that one runs it has the ports, and was complete before its start.
settle_edges() {
  if [ "$next_state" = running ]; then
    replaced_edge=$edge_id edge_id=$next_id edge_state=running edge_mark=$next_mark
    name_edge
  else
    docker rm --force --volumes "$next_id" >/dev/null
  fi
}

# The edge that runs gets the edge's name; the one before it goes.
name_edge() {
  [ -z "$replaced_edge" ] || docker rm --force --volumes "$replaced_edge" >/dev/null
  replaced_edge=
  docker rename "$edge_id" "$edge" 2>/dev/null
}

# Opens the co-process in the edge; sets active. Fails where the edge does not run.
enter_edge() {
  [ -n "$edge_id" ] || { probe_close && return 1; }
  if [ "$edge_state" != running ]; then
    probe_close
    docker update --restart always "$edge_id" >/dev/null 2>&1
    docker start "$edge_id" >/dev/null 2>"$passing/error" || return 1
    say "started the edge, which was $edge_state"
  elif [ "${edge_policy:-always}" != always ]; then
    docker update --restart always "$edge_id" >/dev/null 2>&1
    say "gave the edge its restart policy again, which was $edge_policy"
    edge_policy=always
  fi
  [ -n "$probe_is_open" ] || probe_open_in_edge "$edge_id" || return 1
  # Once more, where docker was too busy: an edge that is not entered is taken for one to be replaced.
  probe_ask "slot 5 $name" ||
    { probe_close && probe_open_in_edge "$edge_id" && probe_ask "slot 5 $name"; } || return 1
  # An edge that other applications share may not know this one yet.
  [ "$answer" != none ] || { probe_close && return 1; }
  active=$answer
}

# Prints the slot that is not $1.
other_slot() {
  case $1 in blue) echo green ;; *) echo blue ;; esac
}

# The one step that moves traffic: requests that begin after it go to slot $1.
point_edge() {
  probe_ask "point-$1 5 $name" && [ "$answer" = "$1" ] || return 1
  active=$1 on_trial=''
}

# The same on trial: the co-process ends it where nobody has confirmed it long after its deadline.
try_edge() {
  probe_ask "try-$1 $((trial + 15)) $name" && [ "$answer" = "$1" ] || return 1
  active=$1 on_trial=yes
}

# Whether the edge points where it does to stay: a switch on trial has a mark of its own.
points_to_stay() {
  probe_ask "lasts 5 $name" && [ "$answer" = yes ]
}

# Moves the traffic to slot $1, on trial where that is how the run switches.
move_edge() {
  if [ -n "$trial" ]; then try_edge "$1"; else point_edge "$1"; fi
}

# Sets in_flight: the requests, WebSockets and event streams that slot $1 still answers, as the edge itself counts them.
count_in_flight() {
  in_flight=${in_flight:-1}
  probe_ask "upstreams 5 -" || { in_flight=0 && return 1; }
  # An edge too busy to tell has not said that there are none.
  case $answer in *"\"$name-$1:"*) in_flight=0 ;; *) return 0 ;; esac
  for counted in $(printf '%s' "$answer" | tr '{' '\n' | sed -n "s/.*\"address\":\"$name-$1:[^\"]*\".*\"num_requests\":\([0-9]*\).*/\1/p"); do
    in_flight=$((in_flight + counted))
  done
}

# Prints the configuration of slot $1 for the port in $2, such as "http 8000".
slot_configuration() {
  case $2 in
    h2c) scheme=h2c:// ;;
    *) scheme= ;;
  esac
  echo "reverse_proxy $scheme$name-$1:$3 {"
  [ -z "$trusted_proxies" ] || echo "	trusted_proxies $trusted_proxies"
  # Idle connections to a slot end soon, so that a drained release has none; without a floor of idle connections a busy
  # edge runs out of local ports.
  echo "	transport http {"
  [ "$2" != h2c ] || echo "		versions h2c 2"
  echo "		keepalive 2s"
  echo "		keepalive_idle_conns 512"
  echo "		keepalive_idle_conns_per_host 128"
  echo "		dial_timeout 5s"
  echo "	}"
  echo "}"
}

# Prints one site: its address in $1, the number of its port in $2.
site_configuration() {
  echo "$1 {"
  [ -z "$domain" ] || [ -z "$acme_email$acme_directory" ] || certificate_configuration
  echo "	@green {"
  echo "		file {"
  echo "			root /"
  echo "			try_files /dev/shm/$name-green /edge/$name/green"
  echo "		}"
  echo "		not file {"
  echo "			root /"
  echo "			try_files /dev/shm/$name-blue"
  echo "		}"
  echo "	}"
  echo "	handle @green {"
  echo "		import /edge/$name/green.$2"
  echo "	}"
  echo "	handle {"
  echo "		import /edge/$name/blue.$2"
  echo "	}"
  echo "	handle_errors {"
  echo "		@unreachable expression {http.error.status_code} == 502"
  echo "		respond @unreachable \"No release of $name is serving.\" 503"
  echo "	}"
  echo "}"
}

# Prints how the site gets its certificate: by ACME, or from the edge's own authority where acme_directory is internal.
certificate_configuration() {
  case $acme_directory in
    internal) echo "	tls internal" ;;
    *)
      echo "	tls $acme_email {"
      [ -z "$acme_directory" ] || echo "		ca $acme_directory"
      [ -z "$acme_root" ] || echo "		ca_root /edge/$name/acme-root.pem"
      echo "	}"
      ;;
  esac
}

# Prints what all sites of an edge share.
main_configuration() {
  echo "{"
  # Its own loopback: nobody outside the container reaches it.
  echo "	admin localhost:2019"
  if [ -z "$domain" ]; then
    echo "	auto_https off"
    echo "	servers {"
    echo "		protocols h1 h2 h2c"
    echo "	}"
  fi
  echo "}"
  echo "import /edge/*/site"
}

# Writes all configuration files of this application below $1, slot files for slot $2 only (blue, green or both).
write_configuration() {
  mkdir -p "$1/$name"
  main_configuration >"$1/Caddyfile"
  port_number=0
  : >"$1/$name/site"
  [ -z "$acme_root" ] || printf '%s\n' "$acme_root" >"$1/$name/acme-root.pem"
  for port in $edge_ports; do
    protocol=${port%%/*} target=${port##*/}
    address=http://:$((10000 + port_number))
    [ -z "$domain" ] || address=$domain
    site_configuration "$address" "$port_number" >>"$1/$name/site"
    for slot in $2; do
      slot_configuration "$slot" "$protocol" "$target" >"$1/$name/$slot.$port_number"
    done
    port_number=$((port_number + 1))
  done
}

# Makes the network that edge and releases of this application share. Without IPv6, whatever the daemon's default: the
# health gate and the edge would have to find out by trying whether an application listens on IPv4 alone.
make_network() {
  # An edge that answers is on it.
  [ -z "$active" ] || return 0
  docker network inspect "$network" >/dev/null 2>&1 ||
    docker network create --ipv6=false --label "esteira.owner=$owner" --label esteira.role=network "$network" >/dev/null 2>"$passing/error" ||
    refuse "The network $network cannot be made" "$(docker_said)"
}

# Makes the network esteira: in front of edges, with IPv6 where the daemon's own network has it. Docker publishes ports by
# the network that comes first in the alphabet, which this one does: an application's arrival moves nothing.
make_front_network() {
  docker network inspect esteira >/dev/null 2>&1 && return 0
  set -- --label esteira.owner=esteira
  if daemon_has_ipv6; then
    # Before version 27 Docker chooses no such addresses by itself: a private prefix, drawn at random.
    set -- "$@" --ipv6 --subnet "$(od -An -N7 -tx2 /dev/urandom | awk '{ printf "fd%s:%s:%s:%s::/64", substr($1, 3), $2, $3, $4 }')"
  fi
  docker network create "$@" esteira >/dev/null 2>&1
}

# Says whether containers of this daemon have IPv6 addresses by default.
daemon_has_ipv6() {
  [ "$(docker network inspect --format '{{.EnableIPv6}}' bridge 2>/dev/null)" = true ]
}

# Removes network $1 unless a container is on it. One that is stopped counts, as it does not for docker: it could not
# start any more.
remove_unused_network() {
  [ -n "$(docker ps --all --quiet --filter "network=$1" 2>/dev/null)" ] || docker network rm "$1" >/dev/null 2>&1
}

# Creates an edge that does not run yet, called $1; its published ports are the arguments after it. Sets created_edge.
create_edge() {
  edge_name=$1
  shift
  front=$edge_network
  # By a network without IPv6 a client's address would be lost: Docker's own proxy would stand in between.
  if [ "$front" = esteira ] || daemon_has_ipv6; then
    front=esteira
    make_front_network
  fi
  docker image inspect "$edge_image" >/dev/null 2>&1 || pull "$edge_image"
  created_edge=$(docker create --name "$edge_name" --restart always --network "$front" \
    --log-driver json-file --log-opt max-size=10m --log-opt max-file=3 \
    --label "esteira.owner=$edge_owner" --label esteira.role=edge --label "esteira.edge=$edge_fingerprint" \
    --volume "$edge:/edge" --volume "$edge-data:/data" "$@" "$edge_image" \
    caddy run --config /edge/Caddyfile --adapter caddyfile 2>"$passing/error") ||
    refuse "The edge cannot be created" "$(docker_said)"
  [ "$front" = "$network" ] || docker network connect "$network" "$created_edge" 2>"$passing/error" ||
    refuse "The edge cannot join network $network" "$(docker_said)"
  [ -z "$domain" ] || join_sites
}

# Lets a new shared edge reach the applications whose sites are in its volume already.
join_sites() {
  docker cp "$created_edge:/edge" "$passing/sites" 2>/dev/null
  for site in "$passing/sites"/*/site; do
    site=${site%/site}
    # Docker lets a container that does not run join a network that is not there, and then does not start it.
    [ "${site##*/}" != "$name" ] && docker network inspect "esteira-${site##*/}" >/dev/null 2>&1 || continue
    docker network connect "esteira-${site##*/}" "$created_edge" 2>/dev/null
  done
  rm -rf "$passing/sites"
}

# Puts the configuration into the volume of an edge that does not run yet; its first slot is $1.
configure_stopped_edge() {
  rm -rf "$passing/edge"
  write_configuration "$passing/edge" "blue green"
  [ "$1" != green ] || : >"$passing/edge/$name/green"
  docker cp "$passing/edge/." "$created_edge:/edge" 2>"$passing/error" ||
    refuse "The edge cannot be configured" "$(docker_said)"
}

# Brings the running edge's files up to date for the slots in $1, and reloads it if that changed any. A file appears by
# rename, so that an edge that restarts at any moment finds a whole configuration.
configure_running_edge() {
  rm -rf "$passing/edge"
  write_configuration "$passing/edge" "$1"
  edge_is_up_to_date && return 0
  say "the edge's configuration changes: reloading it (long-lived connections are cut)"
  for file in "$passing/edge/Caddyfile" "$passing/edge/$name"/*; do
    mv "$file" "$file.new"
  done
  docker exec "$edge_id" sh -c "mkdir -p /edge/$name && rm -rf /tmp/before && cp -a /edge /tmp/before" 2>"$passing/error" &&
    docker cp "$passing/edge/." "$edge_id:/edge" 2>"$passing/error" &&
    docker exec "$edge_id" sh -c "for file in /edge/Caddyfile.new /edge/$name/*.new; do mv \"\$file\" \"\${file%.new}\"; done" 2>"$passing/error" &&
    reload_edge && return 0
  docker exec "$edge_id" sh -c "rm -rf /edge/$name && cp -a /tmp/before/. /edge" 2>/dev/null
  refuse "The edge cannot be reloaded" "$(docker_said)"
}

# Whether the running edge's files are the written ones. Asked by their sum, of the co-process: it costs no docker command.
edge_is_up_to_date() {
  [ -n "$probe_is_open" ] || return 1
  files=
  for file in "$passing/edge/Caddyfile" "$passing/edge/$name"/*; do
    files="$files ${file#"$passing"}"
  done
  probe_ask "sum 5$files" && [ "$answer" = "$(cat "$passing/edge/Caddyfile" "$passing/edge/$name"/* | sha256sum)" ]
}

# Makes a changed configuration the running one.
reload_edge() {
  docker exec "$edge_id" caddy reload --config /edge/Caddyfile --adapter caddyfile >/dev/null 2>"$passing/error"
}

shared_ports='--publish=80:80 --publish=443:443 --publish=443:443/udp'

# Adds this application to the edge that applications with a domain share; it points at slot $1 from then on.
add_site() {
  if [ -z "$edge_id" ]; then
    # shellcheck disable=SC2086 # words
    create_edge "$edge" $shared_ports
    configure_stopped_edge "$1"
    still_wanted
    if ! docker start "$created_edge" >/dev/null 2>"$passing/error"; then
      message=$(docker_said)
      docker rm --force --volumes "$created_edge" >/dev/null
      refuse "The shared edge does not start on server $server" "$message"
    fi
    edge_id=$created_edge
  else
    docker network connect "$network" "$edge_id" 2>/dev/null
    [ "$1" = blue ] || docker exec "$edge_id" sh -c "mkdir -p /edge/$name && : >/edge/$name/green"
    configure_running_edge "blue green"
  fi
  edge_state=running edge_mark=$edge_fingerprint
  probe_close
  enter_edge || fail "The shared edge does not answer on server $server. Look at it there: docker logs $edge"
}

# Takes this application from the shared edge, and the edge away with its last application.
remove_site() {
  shared=$(docker container inspect --format '{{.Id}}' esteira-edge 2>/dev/null) || return 0
  docker exec "$shared" test -e "/edge/$name/site" 2>/dev/null || return 0
  if [ "$(docker exec "$shared" sh -c 'ls -d /edge/*/site' 2>/dev/null)" = "/edge/$name/site" ]; then
    docker rm --force "$shared" >/dev/null
    docker volume rm esteira-edge esteira-edge-data >/dev/null 2>&1
    remove_unused_network esteira
  else
    docker exec "$shared" sh -c "rm -rf /edge/$name && caddy reload --config /edge/Caddyfile --adapter caddyfile" >/dev/null 2>&1
    docker network disconnect --force "$network" "$shared" >/dev/null 2>&1
  fi
}

# Takes away this application's own edge.
remove_own_edge() {
  docker volume inspect "$name-edge" >/dev/null 2>&1 || return 0
  for made in "$name-edge" "$name-edge-next"; do
    [ "$(docker container inspect --format '{{index .Config.Labels "esteira.owner"}}' "$made" 2>/dev/null)" != "$owner" ] ||
      docker rm --force --volumes "$made" >/dev/null 2>&1
  done
  remove_edge_volumes
}

# Removes the volumes of this application's own edge, unless a container has them.
remove_edge_volumes() {
  docker volume rm "$name-edge" "$name-edge-data" >/dev/null 2>&1
  remove_unused_network esteira
}
