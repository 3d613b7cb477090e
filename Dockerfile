# Weir's images: `docker build --target proxy --tag REGISTRY/weir/proxy:TAG .`, likewise webhook, control-plane, cni and init.
# Without Docker: `make images`, which takes the five last stages from here and builds the programs on this machine.

FROM docker.io/library/rust:1.90-bookworm AS build
WORKDIR /src
COPY . .
# The target is named, though it is the machine's own: so that procedural macros are built without the flag.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$target" \
        -p weir-webhook -p weir-control -p weir-proxy -p weir-init -p weir-cni \
    && mkdir /out \
    && for program in webhook control proxy init cni; do cp "target/$target/release/weir-$program" /out/; done
RUN apt-get update && apt-get install -y --no-install-recommends iptables && tools/iptables /iptables

FROM scratch AS webhook
COPY --from=build /out/weir-webhook /weir-webhook
USER 65532:65532
ENTRYPOINT ["/weir-webhook"]

FROM scratch AS control-plane
COPY --from=build /out/weir-control /weir-control
USER 65532:65532
ENTRYPOINT ["/weir-control"]

# weir-init lies beside the proxy, so that a pod has one image of ours, also where no CNI plugin is installed.
FROM scratch AS proxy
COPY --from=build /out/weir-proxy /weir-proxy
COPY --from=build /out/weir-init /weir-init
USER 1337:1337
ENTRYPOINT ["/weir-proxy"]

# Root, because the folders of a node are.
FROM scratch AS cni
COPY --from=build /out/weir-cni /weir-cni
USER 0:0
ENTRYPOINT ["/weir-cni"]

# For nodes that are redirected by iptables: weir-init with the programs.
FROM scratch AS init
COPY --from=build /iptables/ /
COPY --from=build /out/weir-init /weir-init
USER 0:0
ENTRYPOINT ["/weir-init"]
