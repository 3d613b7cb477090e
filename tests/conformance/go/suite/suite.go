// Package suite holds the version of Gateway API's conformance suite, whose own test program is what runs.
package suite

import _ "sigs.k8s.io/gateway-api/conformance"
