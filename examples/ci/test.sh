#!/bin/bash
# The batch script of a project's tests: what would be typed on the cluster, in the directory that was pushed.
#SBATCH --nodes=1
#SBATCH --time=00:30:00
mkdir -p results
echo "testing on $(hostname)"

if grep -q lattice data/model.txt; then
  outcome=''
else
  outcome='<failure message="no lattice in data/model.txt"/>'
fi
echo "<testsuite><testcase name=\"model\">$outcome</testcase></testsuite>" > results/model.xml
[ -z "$outcome" ]
