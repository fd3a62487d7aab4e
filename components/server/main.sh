# Esteira on a server: the entry. Arguments: the phase, key=value lines, "--", docker create options, "--", the command.

# Sets hundredths: $1, in seconds such as 30 or 0.5, as an integer.
hundredths() {
  fraction=00
  case $1 in *.*) fraction=$(printf %.2s "${1#*.}00") ;; esac
  hundredths=$((${1%%.*} * 100 + 1$fraction - 100))
}

# Takes one port of strategy blueGreen, such as 127.0.0.1:8888:8000/http, apart.
add_port() {
  protocol=${1##*/} target=${1%/*}
  published_ports="$published_ports ${target%:*}"
  edge_ports="$edge_ports $protocol/${target##*:}"
}

# Reads the arguments, sets what all phases share, and carries out the phase in $1.
main() {
  phase=$1
  shift
  more_networks='' published_ports='' edge_ports='' holdable_ports='' client=${SSH_CONNECTION%% *}
  while [ $# -gt 0 ]; do
    case $1 in
      server=*) server=${1#*=} ;;
      owner=*) owner=${1#*=} ;;
      name=*) name=${1#*=} ;;
      commit=*) commit=${1#*=} ;;
      tag=*) tag=${1#*=} ;;
      registry=*) registry=${1#*=} ;;
      strategy=*) strategy=${1#*=} ;;
      restart=*) restart=${1#*=} ;;
      network=*) more_networks="$more_networks ${1#*=}" ;;
      preDeploy=*) pre_deploy=${1#*=} ;;
      keepReleases=*) keep_releases=${1#*=} ;;
      lockTimeout=*) lock_timeout=${1#*=} ;;
      edgeImage=*) edge_image=${1#*=} ;;
      probeNetwork=*) probe_network=${1#*=} ;;
      health.test=*) health_test=${1#*=} ;;
      health.scheme=*) health_scheme=${1#*=} ;;
      health.path=*) health_path=${1#*=} ;;
      health.status=*) health_status=${1#*=} ;;
      health.port=*) health_port=${1#*=} ;;
      health.interval=*) health_interval=${1#*=} ;;
      health.timeout=*) health_timeout=${1#*=} ;;
      health.retries=*) health_retries=${1#*=} ;;
      health.startPeriod=*) hundredths "${1#*=}" && health_start_period=$hundredths ;;
      port=*) add_port "${1#*=}" ;;
      domain=*) domain=${1#*=} ;;
      acme.email=*) acme_email=${1#*=} ;;
      acme.directory=*) acme_directory=${1#*=} ;;
      acme.root=*) acme_root=${1#*=} ;;
      trustedProxies=*) trusted_proxies=${1#*=} ;;
      watch=*) hundredths "${1#*=}" && watch=$hundredths ;;
      drainTime=*) hundredths "${1#*=}" && drain_time=$hundredths ;;
      holdable=*) holdable_ports="$holdable_ports ${1#*=}" ;;
      history=*) history_lines=${1#*=} ;;
      candidateLifetime=*) candidate_lifetime=${1#*=} ;;
      confirmTimeout=*) confirm_timeout=${1#*=} ;;
      decision=*) decision=${1#*=} ;;
      client=*) client=${1#*=} ;;
      --) shift && break ;;
      *) printf 'error: the server does not know the argument %s\n' "${1%%=*}" >&2 && exit 2 ;;
    esac
    shift
  done
  # A lost client is noticed by failing writes, not by dying of them; an interrupt is looked at between steps.
  trap '' PIPE HUP
  trap 'interrupted=yes' INT TERM
  # The program found that this container is not what its labels say: it must not be kept.
  case $request in
    *" [renew "*) renewed_id=${request##* \[renew } && renewed_id=${renewed_id%]} ;;
    *) renewed_id= ;;
  esac
  operator="$owner by ${SUDO_USER:-$(id -un)}${client:+ from $client}${request:+ ($request)}"
  short_commit=$(printf %.7s "$commit")
  require_docker
  network=esteira-$name edge=$name-edge edge_network=esteira-$name edge_owner=$owner
  edge_fingerprint=$(printf '%s' "$edge_image$published_ports" | tr ' ' ,)
  [ -z "$domain" ] || { edge=esteira-edge edge_network=esteira edge_owner=esteira edge_fingerprint=$edge_image,80,443; }
  case $phase in
    read) read_server ;;
    status) show_status ;;
    deploy | candidate | switch | confirm | undo)
      short_digest=${image##*@}
      short_digest=$(printf %.19s "$short_digest")
      release=$name-$(printf %.12s "$commit")-$(printf %.6s "${image##*sha256:}")$(printf %.6s "$fingerprint")
      take_lock
      mark_run
      make_passing_files
      finish_stopping
      remember_server_name
      remove_leftovers
      [ "$phase" = undo ] || refuse_given_up
      begin_deployment
      case $strategy.$phase in
        *.undo) undo ;;
        recreate.candidate) prepare_recreate "$@" ;;
        recreate.confirm) confirm_recreate || recreate "$@" ;;
        recreate.*) trial=$confirm_timeout && recreate "$@" ;;
        *.candidate) candidate "$@" ;;
        *.confirm) confirm_slots || switch "$@" ;;
        *) switch "$@" ;;
      esac
      ;;
    remove)
      take_lock
      mark_run
      make_passing_files
      finish_stopping
      remove
      ;;
    *) fail "The server does not know the phase $phase." ;;
  esac
  leave 0
}
