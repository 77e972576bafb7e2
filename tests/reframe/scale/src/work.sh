#!/bin/bash
echo "result $(( $1 * 7 ))"
