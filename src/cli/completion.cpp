#include "cli/commands.hpp"

namespace godwit::cli {
namespace {

constexpr const char* bash = R"SH(# godwit completion for bash: source <(godwit completion bash)
_godwit_nodes() { godwit nodes --json 2>/dev/null | sed -n 's/^    "name": "\(.*\)",\{0,1\}$/\1/p'; }
_godwit() {
  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" command="" i words=0
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${COMP_WORDS[i]}" in
      --) return ;;
      --socket|--node) ((i++)) ;;
      -*) ;;
      *) if [ -z "$command" ]; then command="${COMP_WORDS[i]}"; else ((words++)); fi ;;
    esac
  done
  local choice
  case "$prev" in
    --node|--forget) choice="$(_godwit_nodes)" ;;
    --strategy) choice="auto freeze precopy postcopy hybrid eager-dirty" ;;
    --socket) COMPREPLY=($(compgen -f -- "$cur")); return ;;
    *) case "$command" in
      "") choice="run ps nodes migrate drain history resolve stop kill logs exec attach inspect rm wait check join pki playground completion
                  --help --version --json --socket --node" ;;
      completion) choice="bash zsh fish" ;;
      playground) choice="up down exec status daemon store link" ;;
      pki) choice="init token expel renew show --node --label --address --valid --lifetime --json $(_godwit_nodes)" ;;
      join) choice="--token --again --json" ;;
      run) choice="--name --env -i -t -it --detach --keep --memory --cpus --needs --user --capabilities --hostname --workdir --json --" ;;
      nodes) choice="--json --watch --forget" ;;
      history) choice="$(godwit ps --quiet 2>/dev/null) --limit --show --json" ;;
      ps) choice="--json --local --quiet --watch" ;;
      check) choice="--json" ;;
      migrate)
        if [ $words -eq 0 ]; then choice="$(godwit ps --quiet 2>/dev/null)"; else choice="$(_godwit_nodes)"; fi
        choice="$choice --strategy --dry-run --cancel --connections --json" ;;
      *) choice="$(godwit ps --quiet 2>/dev/null) --json" ;;
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$choice" -- "$cur"))
}
complete -F _godwit godwit
)SH";

constexpr const char* zsh = R"SH(#compdef godwit
# godwit completion for zsh: source <(godwit completion zsh), or put it into $fpath as _godwit
_godwit_pods() { local -a pods; pods=(${(f)"$(godwit ps --quiet 2>/dev/null)"}); compadd -a pods }
_godwit_nodes() {
  local -a nodes
  nodes=(${(f)"$(godwit nodes --json 2>/dev/null | sed -n 's/^    "name": "\(.*\)",\{0,1\}$/\1/p')"})
  compadd -a nodes
}
_godwit() {
  local -a commands
  commands=(
    'run:start a pod' 'ps:list pods' 'nodes:list nodes' 'migrate:move a pod to another node' 'drain:empty a node'
    'history:list moves' 'resolve:decide what is in doubt' 'stop:end pods'
    'kill:send a signal' 'logs:show output' 'exec:run a program in a pod' 'attach:join the streams of a pod'
    'inspect:show everything about pods' 'rm:forget pods' 'wait:wait for the end of pods'
    'check:say what this machine lacks' 'join:make this machine a node of a cluster'
    'pki:who is a node' 'playground:several machines on one' 'completion:completion for a shell')
  if (( CURRENT == 2 )); then _describe command commands; return; fi
  case $words[2] in
    completion) compadd bash zsh fish ;;
    playground) compadd up down exec status daemon store link ;;
    pki) compadd init token expel renew show; compadd -- --node --label --address --valid --lifetime --json; _godwit_nodes ;;
    join) compadd -- --token --again --json ;;
    run) compadd -- --name --env -i -t -it --detach --keep --memory --cpus --needs --user --capabilities --hostname --workdir --json ;;
    migrate)
      if (( CURRENT == 3 )); then _godwit_pods; else _godwit_nodes; fi
      compadd -- --strategy --dry-run --cancel --connections --json ;;
    nodes) if [[ $words[CURRENT-1] == --forget ]]; then _godwit_nodes; else compadd -- --json --watch --forget; fi ;;
    history) _godwit_pods; compadd -- --limit --show --json ;;
    ps) compadd -- --json --local --quiet --watch ;;
    check) compadd -- --json ;;
    *) _godwit_pods ;;
  esac
}
compdef _godwit godwit
)SH";

constexpr const char* fish = R"SH(# godwit completion for fish: godwit completion fish | source
function __godwit_nodes
  godwit nodes --json 2>/dev/null | sed -n 's/^    "name": "\(.*\)",\{0,1\}$/\1/p'
end
set -l commands run ps nodes migrate drain history resolve stop kill logs exec attach inspect rm wait check join pki playground completion
complete -c godwit -f
complete -c godwit -n "not __fish_seen_subcommand_from $commands" -a "$commands"
complete -c godwit -l json -d 'machine-readable output'
complete -c godwit -l socket -r -F -d 'the socket of the daemon'
complete -c godwit -l node -x -a '(__godwit_nodes)' -d 'let the daemon of this node do it'
set -l about_pods migrate history resolve stop kill logs exec attach inspect rm wait
complete -c godwit -n "__fish_seen_subcommand_from $about_pods" -a '(godwit ps --quiet 2>/dev/null)'
complete -c godwit -n '__fish_seen_subcommand_from migrate' -a '(__godwit_nodes)'
complete -c godwit -n '__fish_seen_subcommand_from migrate' -l strategy -x \
  -a 'auto freeze precopy postcopy hybrid eager-dirty'
complete -c godwit -n '__fish_seen_subcommand_from migrate' -l dry-run
complete -c godwit -n '__fish_seen_subcommand_from migrate' -l cancel
complete -c godwit -n '__fish_seen_subcommand_from ps nodes' -l watch
complete -c godwit -n '__fish_seen_subcommand_from history' -l limit -x
complete -c godwit -n '__fish_seen_subcommand_from history' -l show -x
complete -c godwit -n '__fish_seen_subcommand_from nodes' -l forget -x -a '(__godwit_nodes)'
complete -c godwit -n '__fish_seen_subcommand_from run' -l name -x
complete -c godwit -n '__fish_seen_subcommand_from run' -l env -x
complete -c godwit -n '__fish_seen_subcommand_from run' -l detach
complete -c godwit -n '__fish_seen_subcommand_from run' -l memory -x
complete -c godwit -n '__fish_seen_subcommand_from run' -l cpus -x
complete -c godwit -n '__fish_seen_subcommand_from run' -l needs -x
complete -c godwit -n '__fish_seen_subcommand_from run' -l user -x
complete -c godwit -n '__fish_seen_subcommand_from run' -l capabilities -x
complete -c godwit -n '__fish_seen_subcommand_from pki' -a 'init token expel renew show (__godwit_nodes)'
complete -c godwit -n '__fish_seen_subcommand_from pki' -l label -x
complete -c godwit -n '__fish_seen_subcommand_from join' -l token -x
complete -c godwit -n '__fish_seen_subcommand_from join' -l again
complete -c godwit -n '__fish_seen_subcommand_from playground' -a 'up down exec status daemon store link'
complete -c godwit -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'
)SH";

}  // namespace

std::string completion_script(const std::string& shell) {
  if (shell == "bash") return bash;
  if (shell == "zsh") return zsh;
  if (shell == "fish") return fish;
  return {};
}

}  // namespace godwit::cli
