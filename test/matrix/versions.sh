#!/bin/sh
# Says which OTP and which Elixir this is.
set -eu
otp=$(erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().')
echo "$otp $(elixir --short-version)"
