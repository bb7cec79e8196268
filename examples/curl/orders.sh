#!/bin/sh
# Appends orders to a stream, reads them back, and appends on a condition. The argument is the server.
set -eu

server=${1:-http://127.0.0.1:7070}

# call METHOD PATH [BODY]: prints the answer, and fails if it is an error.
call() {
  curl --silent --show-error --fail-with-body --request "$1" "$server$2" \
    --header "authorization: Bearer ${S2_ACCESS_TOKEN:-none}" \
    --header 's2-basin: example-curl' --header 'content-type: application/json' ${3:+--data "$3"}
}

# PUT ensures: a second run changes nothing.
call PUT /v1/basins/example-curl >/dev/null
call PUT /v1/streams/orders >/dev/null

# The answer comes after the records are synced to the disk.
ack=$(call POST /v1/streams/orders/records '{"records":[{"body":"apple"},{"body":"pear"}]}')
end=$(printf '%s' "$ack" | sed 's/.*"end":{"seq_num":\([0-9]*\).*/\1/')
echo "appended up to $end"

call GET "/v1/streams/orders/records?seq_num=$((end - 2))&count=2" |
  grep -o '"seq_num":[0-9]*,"timestamp":[0-9]*,"body":"[^"]*"' |
  sed 's/"seq_num":\([0-9]*\).*"body":"\(.*\)"/\1 \2/'

# Another writer would have moved the tail: then the answer is 412, and nothing is appended.
call POST /v1/streams/orders/records "{\"match_seq_num\":$end,\"records\":[{\"body\":\"plum\"}]}" >/dev/null
echo "appended on the condition that the tail is $end"
status=$(call POST /v1/streams/orders/records "{\"match_seq_num\":$end,\"records\":[{\"body\":\"fig\"}]}" || true)
echo "refused: $status" | sed 's/curl:.*//'
