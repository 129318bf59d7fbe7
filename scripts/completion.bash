# shellcheck shell=bash
# bash completion for switchyard: commands, their actions, options, config keys, files.
# Installed as share/bash-completion/completions/switchyard; or: source scripts/completion.bash

# What of `switchyard [COMMAND] --help` are commands, or actions: lines "  NAME  what", or "ckpt ls|verify" of the usage.
_switchyard_words() {
    sed -n -e 's/^  \([a-z][a-z0-9-]*\) .*/\1/p' -e '1s/^usage: switchyard [a-z]* \([a-z][a-z0-9|-]*\) .*/\1/p' | tr '|' '\n'
}

_switchyard() {
    local word=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]} command=${COMP_WORDS[1]:-} actions=""
    local path=("$command")
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null | _switchyard_words) --help --help-keys --version" -- "$word")
        return
    fi
    case $command in ckpt | tokenizer | trace) actions=$("$program" "$command" --help 2>/dev/null | _switchyard_words) ;; esac
    if [ "$COMP_CWORD" -gt 2 ] && [[ $'\n'$actions$'\n' == *$'\n'${COMP_WORDS[2]}$'\n'* ]]; then
        path+=("${COMP_WORDS[2]}")
    fi
    if [ "$COMP_CWORD" -eq 2 ] && [ -n "$actions" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$actions --help" -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" "${path[@]}" --help 2>/dev/null | sed -n 's/^  \(--[a-z0-9-]*\).*/\1/p') --help" -- "$word")
    elif [[ $word == [a-z]*.* && ! -e $word ]]; then
        mapfile -t COMPREPLY < <(compgen -S = -W "$("$program" --help-keys 2>/dev/null | sed -n 's/^\([a-z][a-z0-9_]*\.[a-z0-9_.]*\).*/\1/p')" -- "$word")
        compopt -o nospace
        [ ${#COMPREPLY[@]} -gt 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
    else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -F _switchyard switchyard
