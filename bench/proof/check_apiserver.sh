#!/bin/sh
# kubeadm's script, through the local haproxy.
curl -sfk --max-time 2 https://localhost:@PORT@/healthz -o /dev/null || { echo "*** Error GET https://localhost:@PORT@/healthz" 1>&2; exit 1; }
