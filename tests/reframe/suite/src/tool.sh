#!/bin/bash
echo "tool in $(pwd)"
cat data/table.txt
