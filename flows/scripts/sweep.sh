#!/bin/bash
# One row of a sweep: the values of the row are variables, and result.json is what goes into the table.
set -eu
echo "{\"seconds\": $SECONDS, \"radians\": $((ANGLES * 314159 / 180))e-5}" >result.json
