#!/bin/sh
# Opens a shell on the first host of a lab, where the command `lab` reaches the rest of it.
#
#   sh shell.sh BEAMS SCENARIO [KEY=VALUE]...
set -eu

beams=$1
scenario=$2
shift
here=$(cd "$(dirname "$0")" && pwd)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# An interrupt is for what runs in the shell.
trap ':' INT
trap 'exit 1' HUP TERM
mkfifo "$folder/ask" "$folder/answer"

# Lives until the last of those who may ask is gone, and takes the lab with it.
erl +Bd -noshell -pa "$beams" -s netlab_console main -extra "$@" <"$folder/ask" >"$folder/answer" 3>&- &
console=$!
exec 3>"$folder/ask" 4<"$folder/answer"
read -r verdict id machines <&4 || true
if [ "$verdict" != ok ]; then
    echo "lab: $id $machines" >&2
    exit 1
fi

NETLAB_ID=$id
NETLAB_FOLDER=$folder
NETLAB_MACHINES=$machines
PATH=$here/bin:$PATH
export NETLAB_ID NETLAB_FOLDER NETLAB_MACHINES PATH

host=${machines%% *}
cat <<BANNER
lab $scenario: $machines
You are on $host. 'lab help' says how to reach and change the rest; leaving the shell removes the lab.
BANNER
# bash only, since others have other ways to get a prompt.
cat >"$folder/rc" <<'RC'
[ ! -f ~/.bashrc ] || . ~/.bashrc
PS1="lab:$NETLAB_HOST \w \$ "
RC
status=0
lab on "$host" bash --rcfile "$folder/rc" 3>&- 4<&- || status=$?
exec 3>&- 4<&-
wait "$console" || true
exit "$status"
