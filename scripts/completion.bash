# shellcheck shell=bash
# bash completion for switchyard: commands, options, config keys, files.
# Installed as share/bash-completion/completions/switchyard; or: source scripts/completion.bash
_switchyard() {
    local word=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]} command=${COMP_WORDS[1]:-}
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null | sed -n 's/^  \([a-z][a-z]*\) .*/\1/p') --help --help-keys --version" -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" "$command" --help 2>/dev/null | grep -oE '^  --[a-z0-9-]+') --help" -- "$word")
    elif [[ $word == [a-z]*.[a-z]* && ! -e $word ]]; then
        mapfile -t COMPREPLY < <(compgen -S = -W "$("$program" --help-keys 2>/dev/null | grep -oE '^[a-z]+\.[a-z0-9_.]+')" -- "$word")
        compopt -o nospace
        [ ${#COMPREPLY[@]} -gt 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
    else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -F _switchyard switchyard
